"""Routes: exact splits by source and component, against the network itself."""

from __future__ import annotations

import pytest
import torch

from cutaway.analysis import attribution, head_decomposition
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, MissingActivation, ShapeError, UnknownName
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache


def toy(**change: object) -> Transformer:
    torch.manual_seed(0)
    fields: dict[str, object] = {"n_layers": 2, "n_heads": 3, "d_model": 12, "d_head": 4, "n_ctx": 7, "d_vocab": 9}
    fields |= {"attn_only": True, "normalization_type": "LN"}
    model = Transformer(HookedTransformerConfig(**{**fields, **change}, dtype="float64", device="cpu"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


VARIANTS = [{}, {"normalization_type": "LNPre"}, {"normalization_type": None}, {"attn_only": False, "d_mlp": 5, "act_fn": "relu"},
            {"normalization_type": "RMS", "n_key_value_heads": 1}, {"positional_embedding_type": "shortformer"},
            {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}]  # fmt: skip


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest) -> Transformer:
    return toy(**request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(9, (4, 7), generator=torch.Generator().manual_seed(1))


def test_scores_sum_to_those_of_the_network(model: Transformer, tokens: torch.Tensor):
    split = head_decomposition.scores_by_key(model, "1.2", tokens).data.sum(0)
    with torch.no_grad():
        scores = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_attn_scores")[1]["blocks.1.attn.hook_attn_scores"]
    seen = ~scores[0, 0].isinf()
    assert int(seen.sum()) == (18 if model.cfg.use_local_attn else 28)
    difference = (scores[:, 2] - split).masked_fill(~seen, torch.nan)
    spread = difference - difference.nanmean(-1, keepdim=True)  # up to a constant for each query
    torch.testing.assert_close(spread[:, seen], torch.zeros_like(spread[:, seen]), atol=1e-10, rtol=0)
    assert bool((split[:, ~seen] == 0).all())


def test_outputs_sum_to_what_attention_writes(model: Transformer, tokens: torch.Tensor):
    for layer in (0, 1):
        parts, labels = head_decomposition.outputs_by_component(model, layer, tokens)
        assert labels[-1] == "constant" and parts.shape[:2] == (len(labels), 3)
        name = f"blocks.{layer}.hook_attn_out"
        with torch.no_grad():
            written = model.run_with_cache(tokens, names_filter=name)[1][name]
        torch.testing.assert_close(parts.sum((0, 1)) + model.blocks[layer].attn.b_O, written, atol=1e-10, rtol=0)


def test_moved_sums_to_direct_attribution(model: Transformer, tokens: torch.Tensor):
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -1
    for head in ("0.1", "1.0"):
        split = head_decomposition.logits_by_source(model, head, targets, tokens)
        whole = attribution.attribute(model, tokens, targets=targets).values.sel(component=head).data
        torch.testing.assert_close(split.data.sum((0, 3))[:, :-1], whole[:, :-1], atol=1e-10, rtol=0)
        assert bool((split.data[:, :, -1] == 0).all())


def test_weights_ask_for_differences(model: Transformer, tokens: torch.Tensor):
    first, second = torch.zeros_like(tokens), torch.full_like(tokens, 3)
    weights = torch.nn.functional.one_hot(first, 9) - torch.nn.functional.one_hot(second, 9)
    apart = (
        head_decomposition.logits_by_source(model, "1.1", first, tokens).data
        - head_decomposition.logits_by_source(model, "1.1", second, tokens).data
    )
    torch.testing.assert_close(
        head_decomposition.logits_by_source(model, "1.1", weights.double(), tokens).data, apart, atol=1e-10, rtol=0
    )


def test_means_and_sums_over_pairs(tokens: torch.Tensor):
    split = head_decomposition.scores_by_key(toy(), "1.0", tokens)
    mask = torch.zeros(4, 7, 7, dtype=torch.bool)
    mask[1, 5, [2, 3]] = mask[2, 6, 0] = True
    wanted = (split.data[:, 1, 5, 2] + split.data[:, 1, 5, 3] + split.data[:, 2, 6, 0]) / 3
    torch.testing.assert_close(head_decomposition.over_pairs(split, mask).data, wanted)
    torch.testing.assert_close(head_decomposition.summed(split, mask).data[:, 1, 5], split.data[:, 1, 5, 2:4].sum(-1))
    assert bool(head_decomposition.over_pairs(split, mask & False).data.isnan().all())


def test_errors(tokens: torch.Tensor):
    model = toy()
    with pytest.raises(UnknownName, match=r"'2\.0' is no head"):
        head_decomposition.scores_by_key(model, "2.0", tokens)
    with pytest.raises(ShapeError, match="no layer 2; there are 2"):
        head_decomposition.outputs_by_component(model, 2, tokens)
    with pytest.raises(ShapeError, match=r"targets must be \(4, 7\)"):
        head_decomposition.logits_by_source(model, "1.0", tokens[:2], tokens)
    with pytest.raises(MissingActivation, match="logits_by_source needs"):
        head_decomposition.logits_by_source(ActivationCache({}, model), "1.0", tokens)
    with pytest.raises(ConfigError, match="rotated"):
        head_decomposition.scores_by_key(toy(positional_embedding_type="rotary", rotary_dim=4), "1.0", tokens)
