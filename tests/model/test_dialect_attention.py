"""What the dialect calls on a layer of attention: the same numbers as our own forward pass, and masks that count."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from cutaway import compat
from cutaway.errors import ConfigError, ShapeError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.factored_matrix import FactoredMatrix
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import residual, sweep
from tests.architectures import network, some_tokens

STEPS = ["gpt2", "llama", "gemma", "gpt-j", "split inputs"]


@pytest.mark.parametrize("name", STEPS)
@torch.no_grad()
def test_the_steps_of_the_dialect_are_the_forward_pass(name: str) -> None:
    model, tokens = network(name), some_tokens()
    _, cache = model.run_with_cache(tokens)
    for layer, block in enumerate(model.blocks):
        attn, x = block.attn, block.ln1(cache["resid_pre", layer])
        q, k, v = attn.calculate_qkv_matrices(x, x, x)
        if attn.rotary is not None:
            q, k = attn.apply_rotary(q), attn.apply_rotary(k)
        scores = attn.apply_causal_mask(attn.calculate_attention_scores(q, k))
        torch.testing.assert_close(scores, cache["attn_scores", layer])
        torch.testing.assert_close(attn.calculate_z_scores(v, scores.softmax(-1)), cache["z", layer])


def test_circuits_of_a_layer() -> None:
    attn = network("llama").blocks[0].attn
    assert isinstance(attn.QK, FactoredMatrix) and isinstance(attn.OV, FactoredMatrix)
    torch.testing.assert_close(attn.QK.AB, attn.W_Q @ attn.W_K.transpose(-2, -1))
    torch.testing.assert_close(attn.OV.AB, attn.W_V @ attn.W_O)
    with pytest.raises(ConfigError, match="does not rotate"):
        network("gpt2").blocks[0].attn.apply_rotary(torch.zeros(1, 1, 4, 6))


@pytest.mark.parametrize("name", ["gpt2", "gemma", "bidirectional"])
def test_a_mask_says_which_keys_are_seen(name: str) -> None:
    model, tokens = network(name), some_tokens()
    for layer, block in enumerate(model.blocks):
        seen = model.run_with_cache(tokens)[1]["pattern", layer][0, 0] > 0
        assert torch.equal(block.attn.mask[-9:, -9:], seen) and -torch.inf == block.attn.IGNORE


def without_the_first_key(model: HookedTransformer) -> Tensor:
    mask = model.blocks[1].attn.mask.clone()
    mask[-8:, -9] = False  # all but the first of nine tokens no longer see it
    return mask


@torch.no_grad()
@pytest.mark.parametrize("in_place", [False, True])
def test_a_mask_that_is_set_or_written_counts_by_every_path(in_place: bool) -> None:
    model, tokens = network("gpt2"), some_tokens()
    before, mask = model(tokens), without_the_first_key(model)
    if in_place:
        model.blocks[1].attn.mask[:] = mask
    else:
        model.blocks[1].attn.mask = mask
    fused = model(tokens)
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, fused)
    first, second = (cache["pattern", layer][:, :, 1:, 0] for layer in (0, 1))
    assert (fused - before).abs().max() > 1e-3 and first.all() and not second.any()
    metric = metrics.logit_difference(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    sweep(model, tokens, residual(edits.zero()), metric, audit=99)
    model.blocks[1].attn.mask = mask.new_ones(20, 20).tril()
    assert torch.equal(model(tokens), before)


def test_a_mask_that_cannot_be_is_refused() -> None:
    attn = network("gpt2").blocks[0].attn
    with pytest.raises(ShapeError, match=r"must be \[20, 20\], or a smaller square"):
        attn.mask = torch.ones(3, 4)
    with pytest.raises(ConfigError, match="see later ones"):
        attn.mask = torch.ones(20, 20)


@torch.no_grad()
def test_a_mask_may_be_as_long_as_a_text() -> None:
    model, tokens = network("gpt2"), some_tokens()
    whole = without_the_first_key(model)
    model.blocks[1].attn.mask = whole
    want = model(tokens)
    model.blocks[1].attn.mask = whole[-9:, -9:]
    assert torch.equal(model(tokens), want)
    with pytest.raises(ShapeError, match=r"a text of 10 tokens, and attn\.mask was set to one of 9"):
        model(some_tokens(length=10))


@torch.no_grad()
def test_scores_are_hidden_by_what_a_file_says() -> None:
    model, tokens = network("gpt2"), some_tokens()
    before = model(tokens)
    state = model.state_dict() | {"blocks.0.attn.IGNORE": torch.tensor(-1e5), "blocks.1.attn.mask": without_the_first_key(model)}
    model.load_state_dict(state)
    _, cache = model.run_with_cache(tokens)
    assert cache["attn_scores", 0][0, 0, 0, 1] == -1e5 and cache["attn_scores", 1][0, 0, 0, 1] == -torch.inf
    assert not torch.equal(model(tokens), before)


@torch.no_grad()
def test_the_causal_mask_of_a_published_state_dict_hides_nothing_where_attention_looks_both_ways() -> None:
    """The dialect keeps one in every network and applies it in causal ones only."""
    model, tokens = network("bidirectional"), some_tokens()
    before, causal = model(tokens), torch.ones_like(model.blocks[0].attn.mask).tril()
    model.load_state_dict(model.state_dict() | {f"blocks.{layer}.attn.mask": causal for layer in (0, 1)})
    model.blocks[0].attn.load_state_dict(model.blocks[0].attn.state_dict() | {"mask": causal})
    assert torch.equal(model(tokens), before) and bool(model.blocks[0].attn.mask.all())
    compat.install()
    try:
        assert torch.equal(model.state_dict()["blocks.0.attn.mask"], causal)
    finally:
        compat.uninstall()
    model.load_state_dict(model.state_dict() | {"blocks.1.attn.mask": without_the_first_key(model)})
    assert not torch.equal(model(tokens), before)


def test_state_dicts_hold_masks_while_the_aliases_stand() -> None:
    """A course's loader compares its file's names with the model's, or takes the model's and fills them in."""
    model = network("gpt2")
    names = list(model.state_dict())
    compat.install()
    try:
        state = model.state_dict()
        buffers = [f"blocks.{layer}.attn.{name}" for layer in (0, 1) for name in ("mask", "IGNORE")]
        assert set(state) == {*names, *buffers} and list(state).index(buffers[0]) == list(state).index("blocks.0.attn.b_V") + 1
        other = network("gpt2", seed=1)
        assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
        assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
        torch.save(state, file := io.BytesIO())
        file.seek(0)
        assert set(torch.load(file)) == set(state)
    finally:
        compat.uninstall()
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", ["gpt2", "gemma", "olmo-2"])
def test_norms_after_are_there_where_a_model_has_them(name: str) -> None:
    block = network(name).blocks[0]
    assert [hasattr(block, norm) for norm in ("ln1_post", "ln2_post")] == [name != "gpt2"] * 2


@pytest.mark.parametrize("name", ["llama", "gpt-j"])
@torch.no_grad()
def test_rotary_tables_can_be_set(name: str) -> None:
    """circuit-tracer sets them to themselves; a layer that is given others rotates by them, and its neighbours do not."""
    model, tokens = network(name), some_tokens()
    clean, attn = model(tokens), model.blocks[1].attn
    for block in model.blocks:
        block.attn.rotary_sin, block.attn.rotary_cos = attn.rotary_sin, attn.rotary_cos
    assert torch.equal(model(tokens), clean)
    x = torch.randn(1, 5, 4, 6)
    slow = attn.calculate_sin_cos_rotary(attn.cfg.rotary_dim, attn.cfg.n_ctx, base=50.0)
    attn.rotary_sin, attn.rotary_cos = slow
    assert torch.equal(attn.rotary_sin, slow[0]) and torch.equal(attn.rotary_cos, slow[1])
    other = network(name, rotary_base=50.0)
    torch.testing.assert_close(attn.apply_rotary(x), other.blocks[1].attn.apply_rotary(x))
    assert not torch.equal(model.blocks[0].attn.rotary_sin, attn.rotary_sin) and not torch.allclose(
        model(tokens), clean, atol=1e-3
    )
    sweep(model, tokens, residual(edits.zero()), metrics.logit_difference(1, 2), audit=99)
    with pytest.raises(ShapeError, match=r"\(3, 6\) where \(20, "):
        attn.rotary_sin = torch.zeros(3, 6)
