"""The network: laws that hold for every kind of architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ContextTooLong, ShapeError, TokenError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model import kernels
from cutaway.model.key_values import KeyValueCache
from cutaway.model.losses import cross_entropy, next_token_loss
from cutaway.model.positions import Stream
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import residual, sweep
from cutaway.tokens import CharTokenizer
from cutaway.weights import canonical
from tests.architectures import ALL, CAUSAL, network, some_tokens

every = pytest.mark.parametrize("name", list(ALL))
every_causal = pytest.mark.parametrize("name", CAUSAL)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to `tolerance` times the largest value."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.detach().abs().max().item())


@every
def test_weights_are_the_canonical_ones(name: str) -> None:
    model = network(name)
    canonical.check(model.state_dict(), model.cfg)
    assert set(model.state_dict()) == set(canonical.shapes(model.cfg))


@every
def test_reading_every_site_changes_nothing(name: str) -> None:
    model, tokens = network(name), some_tokens()
    logits, cache = model.run_with_cache(tokens, names_filter=model.sites)
    close(logits, model(tokens))
    assert set(cache.keys()) == set(model.sites)


@every
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_resuming_at_a_layer_is_running_from_scratch(name: str, layer: int) -> None:
    model, tokens = network(name), some_tokens()
    resid = model(tokens, stop_at_layer=layer)
    assert torch.equal(model(resid, start_at_layer=layer), model(tokens))
    loss = model(resid, start_at_layer=layer, tokens=tokens, return_type="loss")
    assert torch.equal(loss, model(tokens, return_type="loss"))


@every
def test_the_residual_stream_is_the_sum_of_what_was_written(name: str) -> None:
    model, tokens = network(name).to(torch.float64), some_tokens()
    _, cache = model.run_with_cache(tokens)
    total = cache["embed"].clone()
    if model.cfg.positional_embedding_type == "standard":
        total += cache["pos_embed"]
    for layer in range(2):
        close(cache["resid_pre", layer], total, 1e-12)
        total += cache["attn_out", layer]
        if not model.cfg.attn_only:
            total += cache["mlp_out", layer]
        close(cache["resid_post", layer], total, 1e-12)


@every
def test_heads_and_bias_sum_to_the_output_of_attention(name: str) -> None:
    model, tokens = network(name).to(torch.float64), some_tokens()
    if model.cfg.post_norm_only or model.cfg.use_normalization_before_and_after:
        pytest.skip("a norm stands between the heads and the stream")
    names = [f"blocks.{layer}.{site}" for layer in range(2) for site in ("attn.hook_result", "hook_attn_out")]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    for layer in range(2):
        close(cache["result", layer].sum(2) + model.b_O[layer], cache["attn_out", layer], 1e-12)


@every
def test_a_pattern_is_a_distribution_over_what_can_be_seen(name: str) -> None:
    model, tokens = network(name), some_tokens()
    _, cache = model.run_with_cache(tokens)
    for layer in range(2):
        pattern = cache["pattern", layer]
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:-1]))
        if model.cfg.attention_dir == "causal":
            assert not pattern.triu(1).any()
        if (window := model.cfg.window(layer)) is not None:
            assert not pattern.tril(-window).any() and pattern.tril(-window + 1).any()


@every_causal
def test_later_tokens_do_not_reach_earlier_logits(name: str) -> None:
    model, tokens = network(name), some_tokens()
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 13
    close(model(changed)[:, :6], model(tokens)[:, :6])


@every
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    model, tokens = network(name), some_tokens(length=6)
    fill, real = torch.zeros(3, 4, dtype=torch.long), torch.ones_like(tokens)
    parts = (fill, tokens) if side == "left" else (tokens, fill)
    masks = (fill, real) if side == "left" else (real, fill)
    padded = model(torch.cat(parts, 1), attention_mask=torch.cat(masks, 1))
    assert not padded.isnan().any()
    close(padded[:, 4:] if side == "left" else padded[:, :6], model(tokens))


LONGROPE = {
    "longrope_short_factor": [1.0, 1.2, 1.5], "longrope_long_factor": [1.0, 4.0, 9.0], "longrope_attention_factor": 1.3,
    "longrope_original_max_position_embeddings": 7,
}  # fmt: skip


def test_short_and_long_texts_are_rotated_by_factors_of_their_own() -> None:
    """LongRoPE: what counts is how many tokens a text has, not how many columns a batch has, nor where a run resumes."""
    model, long, short = network("llama", **LONGROPE), some_tokens(), some_tokens(length=6)
    as_short = network("llama", **LONGROPE | {"longrope_long_factor": LONGROPE["longrope_short_factor"]})
    as_long = network("llama", **LONGROPE | {"longrope_short_factor": LONGROPE["longrope_long_factor"]})
    assert torch.equal(model(short), as_short(short)) and torch.equal(model(long), as_long(long))
    assert (as_long(short) - as_short(short)).abs().max() > 1e-3
    padded, mask = torch.cat([torch.zeros_like(short), short], 1), torch.cat([torch.zeros_like(short), torch.ones_like(short)], 1)
    close(model(padded, attention_mask=mask)[:, 6:], model(short))
    resid = model(long, stop_at_layer=1)
    assert torch.equal(model(resid, start_at_layer=1), model(long))
    alike = torch.cat([long[:1, :8].expand(70, -1), torch.randint(0, 13, (70, 1))], 1)  # (begin with the same 8 tokens)
    for tokens in (short, long, alike):
        metric = metrics.logit_difference(*(torch.arange(2 * len(tokens)).view(2, -1) % 13))
        sweep(model, tokens, residual(edits.zero()), metric, audit=99)  # (stops where a cell is not its full forward pass)


def test_a_batch_of_short_and_long_texts_is_refused_and_so_are_keys_of_short_ones() -> None:
    model, tokens = network("llama", **LONGROPE), some_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with pytest.raises(ContextTooLong, match="run the short texts and the long ones apart"):
        model(tokens, attention_mask=mask)
    kept = KeyValueCache.init_cache(model.cfg, batch_size=3)
    model(tokens[:, :7], past_kv_cache=kept)
    with pytest.raises(ContextTooLong, match="use_past_kv_cache=False"):
        model(tokens[:, 7:], past_kv_cache=kept)


@every_causal
@pytest.mark.parametrize("padding", [0, 2])
def test_kept_keys_and_values_stand_for_the_past(name: str, padding: int) -> None:
    model, tokens = network(name), some_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :padding] = 0
    whole = model(tokens, attention_mask=mask)
    kept = KeyValueCache.init_cache(model.cfg, batch_size=3)
    with torch.no_grad():
        pieces = [model(tokens[:, a:b], attention_mask=mask[:, a:b], past_kv_cache=kept) for a, b in ((0, 4), (4, 5), (5, 9))]
    close(torch.cat(pieces, 1)[:, padding:], whole[:, padding:])
    kept.freeze()
    before = kept.length
    model(tokens[:, :1], past_kv_cache=kept)
    assert kept.length == before


@every
def test_gradients_reach_every_weight_by_either_path(name: str) -> None:
    model, tokens = network(name), some_tokens()
    model(tokens, return_type="loss").backward()
    plain = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    with model.hooks([(site, lambda x, hook: None) for site in model.sites if model.is_enabled(site)]):
        model(tokens, return_type="loss").backward()
    for key, value in model.named_parameters():
        if key in plain:
            assert value.grad is not None, key
            torch.testing.assert_close(value.grad, plain[key], rtol=1e-3, atol=1e-5, msg=key)


@every
def test_a_state_dict_moves_a_model(name: str) -> None:
    model, tokens = network(name), some_tokens()
    other = HookedTransformer(model.cfg)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens), model(tokens))
    assert torch.equal(copy.deepcopy(model)(tokens), model(tokens))


def test_the_seed_decides_the_weights() -> None:
    cfg = {"n_layers": 1, "d_model": 8, "n_ctx": 5, "d_head": 4, "act_fn": "relu", "d_vocab": 7, "seed": 3, "gated_mlp": True}
    model = HookedTransformer(cfg)
    # What the dialect's own library (2.18) draws for this configuration.
    assert model.embed.W_E[0, 0].item() == pytest.approx(-0.02167828008532524)
    assert model.blocks[0].attn.W_Q[0, 0, 0].item() == pytest.approx(-0.035736192017793655)
    assert model.blocks[0].mlp.W_gate[0, 0].item() == pytest.approx(-0.264749675989151)
    assert model.unembed.W_U[0, 0].item() == pytest.approx(-0.29752644896507263)


def test_submodules_can_be_called_on_their_own() -> None:
    model, tokens = network("split inputs"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    close(model.embed(tokens), cache["embed"])
    resid = cache["resid_pre", 1]
    normal = model.blocks[1].ln1(resid)
    close(model.blocks[1].attn(normal, normal, normal), cache["attn_out", 1])
    close(model.blocks[1].mlp(model.blocks[1].ln2(cache["resid_mid", 1])), cache["mlp_out", 1])
    close(model.blocks[1](resid), cache["resid_post", 1])
    last = model.ln_final(cache["resid_post", 1][0, -1])
    close(model.unembed(last), model(tokens)[0, -1])


def test_losses_are_what_a_loop_says() -> None:
    model, tokens = network("gpt2"), some_tokens()
    logits, loss = model(tokens, return_type="both")
    logprobs = logits.log_softmax(-1)
    expected = [[-logprobs[b, p, tokens[b, p + 1]].item() for p in range(8)] for b in range(3)]
    torch.testing.assert_close(model(tokens, return_type="loss", loss_per_token=True), torch.tensor(expected))
    assert loss.item() == pytest.approx(torch.tensor(expected).mean().item(), rel=1e-6)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    kept = [expected[b][p] for b in range(3) for p in range(8) if mask[b, p] and mask[b, p + 1]]
    assert next_token_loss(logits, tokens, mask).item() == pytest.approx(sum(kept) / len(kept), rel=1e-6)


def test_losses_in_pieces_are_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = torch.randn(3, 5, 7), some_tokens(3, 5) % 7
    whole = cross_entropy(logits, labels)
    monkeypatch.setattr("cutaway.model.losses.CHUNK", 14)
    torch.testing.assert_close(cross_entropy(logits, labels), whole)


def test_half_precision_stays_half() -> None:
    model, tokens = network("gpt2").to(torch.bfloat16), some_tokens()
    logits, cache = model.run_with_cache(tokens)
    assert logits.dtype == torch.bfloat16 and cache["attn_scores", 0].dtype == torch.float32
    close(logits.float(), network("gpt2")(tokens), 0.1)


def test_flags_only_choose_what_is_cached() -> None:
    model, tokens = network("llama"), some_tokens()
    before = model(tokens)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    logits, cache = model.run_with_cache(tokens)
    close(logits, before)
    assert {"blocks.0.attn.hook_result", "blocks.1.hook_q_input", "blocks.0.hook_mlp_in"} <= set(cache.keys())
    model.set_ungroup_grouped_query_attention(True)
    logits, cache = model.run_with_cache(tokens)
    close(logits, before)
    assert cache["k", 0].shape[2] == model.cfg.n_heads


def test_text_becomes_tokens() -> None:
    vocabulary = [*"abcdefghijkl", "?"]
    model = network("gpt2")
    model.set_tokenizer(CharTokenizer(vocabulary, bos_token="?"))
    assert torch.equal(model("abc"), model(torch.tensor([[12, 0, 1, 2]])))
    assert torch.equal(model("abc", prepend_bos=False), model(torch.tensor([0, 1, 2])))
    with pytest.raises(TokenError, match="z"):
        model("abz")


def test_bad_input_is_refused_in_words() -> None:
    model = network("gpt2")
    with pytest.raises(TokenError, match="no token 99"):
        model(torch.tensor([[99]]))
    with pytest.raises(TokenError, match="no tokenizer"):
        model("text")
    with pytest.raises(ContextTooLong, match=r"21 tokens.*20 positions"):
        model(torch.zeros(1, 21, dtype=torch.long))
    model.set_tokenizer(CharTokenizer([*"abcdefghijkl", "?"], bos_token="?"))
    with pytest.raises(ContextTooLong, match=r"31 tokens.*20 positions"):
        model("abc" * 10)
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        model(some_tokens(), return_type="logit")
    with pytest.raises(ValueError, match="stop_at_layer=5"):
        model(some_tokens(), stop_at_layer=5)
    with pytest.raises(ShapeError, match="residual stream"):
        model(some_tokens(), start_at_layer=1)
    with pytest.raises(TokenError, match="there are no tokens"):
        model(torch.zeros(1, 0, dtype=torch.long))


def test_negative_layers_count_from_the_end() -> None:
    model, tokens = network("gpt2"), some_tokens()
    assert torch.equal(model(tokens, stop_at_layer=-1), model(tokens, stop_at_layer=1))
    resid = model(tokens, stop_at_layer=1)
    assert torch.equal(model(resid, start_at_layer=-1), model(tokens))


def test_one_layer_of_attention_is_what_its_formula_says() -> None:
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=6, n_ctx=5, d_head=3, attn_only=True, d_vocab=4, normalization_type=None, seed=0
    )
    model = HookedTransformer(cfg)
    tokens = torch.tensor([[1, 3, 0, 2]])
    x = model.W_E[tokens[0]] + model.W_pos[:4]
    out = x.clone()
    for head in range(2):
        q, k, v = (x @ W[0, head] for W in (model.W_Q, model.W_K, model.W_V))
        scores = q @ k.T / 3**0.5
        scores[torch.ones(4, 4).triu(1).bool()] = -torch.inf
        out = out + scores.softmax(-1) @ v @ model.W_O[0, head]
    close(model(tokens)[0], out @ model.W_U)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixture"])
def test_in_half_precision_the_weights_of_each_output_lie_side_by_side(name: str) -> None:
    """Torch multiplies a few rows nine times slower the other way, on processors without instructions for it."""
    half, full = network(name, dtype="bfloat16"), network(name)
    for block, like in zip(half.blocks, full.blocks, strict=True):
        for (what, W), other in zip(block.named_parameters(), like.parameters(), strict=True):
            if W.ndim == 2 and "W_" in what:
                assert kernels.lies(W) == "out" and kernels.lies(other) == "in", what
        attention = [W.transpose(0, 1).flatten(1) for W, _ in block.attn._weights()] + [block.attn.W_O.flatten(0, 1)]
        assert all(kernels.lies(W) == "out" and W._base is not None for W in attention)
    assert kernels.lies(half.unembed.W_U) == "out"


@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize("dim", [4, 6])
def test_rotation_turns_each_pair_by_its_angle(adjacent: bool, dim: int) -> None:
    model = network("llama", rotary_dim=dim, rotary_adjacent_pairs=adjacent)
    rotary = model.blocks[0].attn.rotary
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64, requires_grad=True)
    cos, sin = (table[3:8, None].double() for table in rotary.tables(8, x.device))
    places = torch.arange(dim).view(-1, 2) if adjacent else torch.arange(dim).view(2, -1).T
    wanted = x.detach().clone()
    for pair, (one, other) in enumerate(places.tolist()):
        a, b = x.detach()[..., one], x.detach()[..., other]
        wanted[..., one] = a * cos[..., pair] - b * sin[..., pair]
        wanted[..., other] = b * cos[..., pair] + a * sin[..., pair]
    before = x.detach().clone()
    found = rotary.rotate(x, Stream(3))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(lambda y: rotary.rotate(y, Stream(3)), (x,))


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_heads_that_share_keys_and_values_see_what_heads_with_copies_of_them_see(kv: int) -> None:
    model = network("llama", n_key_value_heads=kv)
    attention = model.blocks[0].attn
    q, k, v = torch.randn(2, 7, 4, 6), torch.randn(2, 7, kv, 6), torch.randn(2, 7, kv, 6)
    padding = torch.ones(2, 7, dtype=torch.bool)
    padding[0, 0] = False
    copies = [x.repeat_interleave(4 // kv, dim=2) for x in (k, v)]
    for stream in (Stream(), Stream(padding=padding)):
        for seen in (fused, explicit):
            torch.testing.assert_close(seen(attention, q, k, v, stream), seen(attention, q, *copies, stream))


def fused(attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, stream: Stream) -> torch.Tensor:
    z: torch.Tensor = attention.attend(q, k, v, stream)
    return z


def explicit(attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, stream: Stream) -> torch.Tensor:
    z: torch.Tensor = attention.mixed(attention.pattern(q, k, stream), v)
    return z
