"""Laws: before and after each rewrite, a plainly written forward pass gives the same answer, in float64."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, WeightsMismatch
from cutaway.sources.checkpoint import LazyTensors
from cutaway.weights import canonical, processing
from cutaway.weights.processing import SkippedRewrite
from tests.weights.plain_transformer import Plain, random_weights

BASE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 12,
    "d_head": 4,
    "n_heads": 4,
    "n_ctx": 7,
    "d_vocab": 11,
    "d_vocab_out": 9,
    "d_mlp": 10,
    "act_fn": "gelu",
    "eps": 1e-3,
    "device": "cpu",
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LN": {},
    "LNPre": {"normalization_type": "LNPre"},
    "RMS": {"normalization_type": "RMS"},
    "RMSPre": {"normalization_type": "RMSPre"},
    "no norm": {"normalization_type": None},
    "attention only": {"attn_only": True, "act_fn": None},
    "final RMS": {"final_rms": True},
    "parallel": {"parallel_attn_mlp": True},
    "rotary": {"positional_embedding_type": "rotary"},
    "no positions": {"positional_embedding_type": "none"},
    "ALiBi, normalised embedding": {"positional_embedding_type": "alibi", "post_embedding_ln": True},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "shortformer without norm weights": {"positional_embedding_type": "shortformer", "normalization_type": "LNPre"},
    "grouped": {"n_key_value_heads": 2},
    "grouped by one": {"n_key_value_heads": 4},
    "Llama": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "act_fn": "silu",
        "positional_embedding_type": "rotary",
        "n_key_value_heads": 2,
    },
    "gated with LN": {"gated_mlp": True},
    "MLP norm": {"act_fn": "gelu_ln"},
    "MLP norm, RMS": {"act_fn": "solu_ln", "normalization_type": "RMS"},
    "mixture, RMS": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
    "mixture, LN": {"num_experts": 3, "experts_per_token": 2, "moe_layers": [False, True]},
    "before and after, RMS": {"normalization_type": "RMS", "use_normalization_before_and_after": True, "use_qk_norm": True},
    "before and after, LN": {"use_normalization_before_and_after": True, "use_qk_norm": True, "qk_norm_type": "LN"},
    "after only, RMS": {"normalization_type": "RMS", "post_norm_only": True, "use_qk_norm": True, "qk_norm_over": "full"},
    "after only, LN": {"post_norm_only": True},
    "clipped": {"clip_qkv": 0.5},
    "capped": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0},
    "wide heads": {"d_head": 16, "n_heads": 2},
}
REWRITES = ["fold_layer_norm", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"]

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def model(name: str) -> tuple[dict[str, torch.Tensor], HookedTransformerConfig, torch.Tensor]:
    cfg = HookedTransformerConfig(**{**BASE, **ARCHITECTURES[name]})
    tokens = torch.randint(cfg.d_vocab, (3, cfg.n_ctx), generator=torch.Generator().manual_seed(1))
    return random_weights(cfg), cfg, tokens


def distance(before: Plain, after: Plain, tokens: torch.Tensor) -> float:
    """The largest difference of any log-probability; without norms, logits are large, and it is relative to them."""
    expected, found = before.logits(tokens), after.logits(tokens)
    difference = (expected.log_softmax(-1) - found.log_softmax(-1)).abs().max()
    return (difference / expected.abs().max().clamp(min=1)).item()


def quiet(function: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRewrite)
        return function(*args, **options)


@every_architecture
@pytest.mark.parametrize("rewrite", REWRITES)
def test_each_rewrite_is_exact_and_leaves_its_input_alone(name: str, rewrite: str) -> None:
    weights, cfg, tokens = model(name)
    kept = {key: tensor.clone() for key, tensor in weights.items()}
    try:
        rewritten = quiet(getattr(processing, rewrite), weights, cfg)
    except ConfigError:
        assert rewrite == "refactor_factored_attn_matrices"
        return
    assert distance(Plain(weights, cfg), Plain(rewritten, cfg), tokens) < 1e-10
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[key], kept[key]) for key in kept)


@every_architecture
def test_all_rewrites_together_are_exact_and_fit_the_configuration_that_comes_out(name: str) -> None:
    weights, cfg, tokens = model(name)
    said = cfg.to_dict()
    processed, after = quiet(processing.process, weights, cfg)
    assert distance(Plain(weights, cfg), Plain(processed, after), tokens) < 1e-10
    canonical.check(processed, after)
    assert cfg.to_dict() == said
    again, _ = quiet(processing.process, processed, after)
    assert all(torch.allclose(again[key], processed[key], atol=1e-12) for key in processed)


@every_architecture
def test_the_order_of_the_rewrites_does_not_matter(name: str) -> None:
    """Existing notebooks centre first and fold last."""
    weights, cfg, tokens = model(name)
    rewritten = weights
    for rewrite in ("center_writing_weights", "center_unembed", "fold_layer_norm", "fold_value_biases"):
        rewritten = quiet(getattr(processing, rewrite), rewritten, cfg)
    assert distance(Plain(weights, cfg), Plain(rewritten, cfg), tokens) < 1e-10
    processed, _ = quiet(processing.process, weights, cfg)
    for key in rewritten:
        torch.testing.assert_close(rewritten[key], processed[key], rtol=0, atol=1e-11)


def test_folding_turns_the_type_of_the_norms() -> None:
    for before, after in (("LN", "LNPre"), ("LNPre", "LNPre"), ("RMS", "RMSPre"), ("no norm", None)):
        weights, cfg, _ = model(before)
        assert quiet(processing.process, weights, cfg)[1].normalization_type == after
        assert quiet(processing.process, weights, cfg, fold_ln=False)[1].normalization_type == cfg.normalization_type


@every_architecture
def test_folded_norms_are_dropped_and_only_they(name: str) -> None:
    weights, cfg, _ = model(name)
    folded = quiet(processing.fold_layer_norm, weights, cfg)
    dropped = weights.keys() - folded.keys()
    assert dropped <= canonical.foldable_norms(cfg).keys()
    if name not in ("gated with LN", "mixture, LN", "shortformer"):
        assert folded.keys() == weights.keys() - canonical.foldable_norms(cfg).keys()


@pytest.mark.parametrize(
    ("name", "stays"),
    [("gated with LN", "ln2"), ("mixture, LN", "blocks.1.ln2"), ("shortformer", "ln1")],
)
def test_a_norm_that_cannot_be_folded_stays_and_says_so(name: str, stays: str) -> None:
    weights, cfg, _ = model(name)
    with pytest.warns(SkippedRewrite, match=f"{stays}.* as (it is|they are)"):
        processed, after = processing.process(weights, cfg)
    assert after.normalization_type == "LN"
    kept = [key for key in canonical.foldable_norms(cfg) if torch.equal(processed[key], weights[key])]
    assert kept == [key for key in weights if f"{stays}." in key]
    assert all((processed[key] == key.endswith(".w")).all() for key in canonical.foldable_norms(cfg) if key not in kept)


def test_a_gated_mlp_folds_where_the_norm_has_no_bias_to_lose() -> None:
    weights, cfg, tokens = model("gated with LN")
    weights |= {f"blocks.{layer}.ln2.b": torch.zeros(cfg.d_model, dtype=torch.float64) for layer in range(2)}
    processed, after = processing.process(weights, cfg)
    assert after.normalization_type == "LNPre"
    assert distance(Plain(weights, cfg), Plain(processed, after), tokens) < 1e-10


def test_what_processing_promises_about_the_weights() -> None:
    weights, cfg, _ = model("MLP norm")
    processed, _ = processing.process(weights, cfg)
    for key, tensor in processed.items():
        part = key.rsplit(".", 1)[-1]
        if part in ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out", "W_U", "b_U"):
            assert tensor.mean(-1).abs().max() < 1e-14, key
        if part in ("W_Q", "W_K", "W_V", "W_in", "W_U") or key.endswith("mlp.W_out"):
            assert tensor.mean(-2).abs().max() < 1e-14, key
        if part == "b_V":
            assert not tensor.any()


def test_refactored_factors_are_orthogonal_and_even() -> None:
    weights, cfg, _ = model("LN")
    new = processing.refactor_factored_attn_matrices(weights, cfg)
    Q, K = (torch.cat([new[f"blocks.1.attn.W_{x}"], new[f"blocks.1.attn.b_{x}"][:, None]], 1) for x in "QK")
    gram = Q.mT @ Q
    torch.testing.assert_close(gram, K.mT @ K, rtol=0, atol=1e-12)
    torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-12)
    W_O, W_V = new["blocks.1.attn.W_O"], new["blocks.1.attn.W_V"]
    torch.testing.assert_close(W_O @ W_O.mT, torch.eye(4, dtype=W_O.dtype).expand(4, 4, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(W_V @ W_O, weights["blocks.1.attn.W_V"] @ weights["blocks.1.attn.W_O"], rtol=0, atol=1e-12)
    assert (W_V.norm(dim=1).diff(dim=-1) <= 0).all()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("rotary", "rotated"),
        ("grouped", "groups"),
        ("clipped", "clipped"),
        ("before and after, RMS", "normalised"),
    ],
)
def test_refactoring_is_refused_where_it_does_not_hold(name: str, why: str) -> None:
    weights, cfg, _ = model(name)
    with pytest.raises(ConfigError, match=why):
        processing.refactor_factored_attn_matrices(weights, cfg)
    with pytest.raises(ConfigError, match=why):
        quiet(processing.process, weights, cfg, refactor_factored_attn_matrices=True)


@pytest.mark.parametrize(
    ("rewrite", "name", "why"),
    [
        ("center_writing_weights", "RMS", "'RMS' does not subtract the mean"),
        ("center_writing_weights", "no norm", "None does not subtract the mean"),
        ("center_writing_weights", "final RMS", "final_rms"),
        ("center_writing_weights", "after only, LN", "post_norm_only"),
        ("center_unembed", "capped", "output_logits_soft_cap=3"),
        ("fold_value_biases", "clipped", "clip_qkv=0.5"),
    ],
)
def test_what_would_not_be_exact_is_skipped_with_a_warning(rewrite: str, name: str, why: str) -> None:
    weights, cfg, _ = model(name)
    with pytest.warns(SkippedRewrite, match=why) as caught:
        rewritten = getattr(processing, rewrite)(weights, cfg)
    assert len(caught) == 1
    assert rewritten is not weights
    assert all(rewritten[key] is weights[key] for key in weights)
    with pytest.warns(SkippedRewrite, match=why):
        processing.process(weights, cfg)


def test_without_folding_biases_a_norm_that_has_one_stays() -> None:
    weights, cfg, tokens = model("LN")
    with pytest.warns(SkippedRewrite, match=r"blocks\.0\.ln1 and 4 more norms stay"):
        same = processing.fold_layer_norm(weights, cfg, fold_biases=False)
    assert same.keys() == weights.keys()
    weights, cfg, tokens = model("RMS")
    folded = processing.fold_layer_norm(weights, cfg, fold_biases=False, center_weights=False)
    assert distance(Plain(weights, cfg), Plain(folded, cfg), tokens) < 1e-10
    uncentred = processing.fold_layer_norm(*model("LN")[:2], center_weights=False)
    assert uncentred["blocks.0.attn.W_Q"].mean(1).abs().max() > 0.01


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.bfloat16, 8), (torch.float16, 11)])
def test_the_type_is_kept_and_each_rewrite_rounds_once(dtype: torch.dtype, bits: int) -> None:
    cfg = HookedTransformerConfig(**{**BASE, "d_model": 300, "dtype": dtype})
    weights = random_weights(cfg, dtype=dtype)
    folded = processing.fold_layer_norm(weights, cfg)
    exact = processing.fold_layer_norm({key: tensor.double() for key, tensor in weights.items()}, cfg)
    for key, tensor in folded.items():
        assert tensor.dtype == dtype
        assert ((tensor.double() - exact[key]).abs() <= 1.001 * exact[key].abs() * 2.0**-bits + 1e-6).all(), key


def test_foreign_keys_are_passed_on_and_buffers_are_dropped_by_process() -> None:
    weights, cfg, _ = model("LN")
    weights["blocks.0.attn.mask"] = torch.ones(7, 7)
    weights["something.else"] = torch.ones(1)
    assert {"blocks.0.attn.mask", "something.else"} <= processing.fold_layer_norm(weights, cfg).keys()
    assert "blocks.0.attn.mask" not in processing.process(weights, cfg)[0]


def test_weights_that_do_not_fit_are_refused_before_anything_is_done() -> None:
    weights, cfg, _ = model("LN")
    for rewrite in REWRITES:
        with pytest.raises(WeightsMismatch, match=r"1 missing \(unembed\.W_U\)"):
            getattr(processing, rewrite)({key: value for key, value in weights.items() if key != "unembed.W_U"}, cfg)
    weights["blocks.0.attn.W_Q"] = torch.ones(1, 2, 3)
    with pytest.raises(WeightsMismatch, match=r"blocks\.0\.attn\.W_Q \[1, 2, 3\] should be \[4, 12, 4\]"):
        processing.process(weights, cfg)


def test_processing_seeds_nothing() -> None:
    weights, _, _ = model("LN")
    cfg = HookedTransformerConfig(**BASE, seed=5)
    torch.rand(1)
    state = torch.get_rng_state()
    processing.process(weights, cfg)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_come_out_as_plain_tensors_where_they_are_rewritten() -> None:
    weights, cfg, _ = model("LN")
    parameters = {key: torch.nn.Parameter(tensor) for key, tensor in weights.items()}
    processed, _ = processing.process(parameters, cfg)
    assert not any(tensor.requires_grad for tensor in processed.values())


@every_architecture
def test_pieces_and_parts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that are read when they are asked for, and rewritten in tiny pieces, come out the same."""
    weights, cfg, _ = model(name)
    whole, after = quiet(processing.process, weights, cfg)
    lazy = LazyTensors({key: tuple(tensor.shape) for key, tensor in weights.items()}, weights.__getitem__)
    monkeypatch.setattr(processing, "PIECE", 16)
    pieces, after_pieces = quiet(processing.process, lazy, cfg)
    assert after_pieces.to_dict() == after.to_dict()
    assert pieces.keys() == whole.keys()
    for key in whole:
        torch.testing.assert_close(pieces[key], whole[key], rtol=0, atol=1e-13)
