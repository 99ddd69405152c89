"""Contracts: the keys and shapes of published state dicts, and what `check` says about misfits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, WeightsMismatch
from cutaway.weights import canonical

BASE: dict[str, Any] = {
    "n_layers": 1,
    "d_model": 8,
    "n_ctx": 5,
    "d_head": 4,
    "n_heads": 2,
    "d_vocab": 7,
    "d_mlp": 16,
    "act_fn": "gelu",
    "device": "cpu",
}
ATTENTION = {"W_Q": (2, 8, 4), "W_K": (2, 8, 4), "W_V": (2, 8, 4), "W_O": (2, 4, 8), "b_Q": (2, 4), "b_K": (2, 4), "b_V": (2, 4)}
PLAIN = {
    "embed.W_E": (7, 8),
    "pos_embed.W_pos": (5, 8),
    **{f"blocks.0.ln{number}.{letter}": (8,) for number in (1, 2) for letter in "wb"},
    **{f"blocks.0.attn.{name}": shape for name, shape in ATTENTION.items()},
    "blocks.0.attn.b_O": (8,),
    "blocks.0.mlp.W_in": (8, 16),
    "blocks.0.mlp.b_in": (16,),
    "blocks.0.mlp.W_out": (16, 8),
    "blocks.0.mlp.b_out": (8,),
    "ln_final.w": (8,),
    "ln_final.b": (8,),
    "unembed.W_U": (8, 7),
    "unembed.b_U": (7,),
}
NORMS = [name for name in PLAIN if "ln" in name]
NORM_BIASES = [name for name in NORMS if name.endswith(".b")]
MLP = {name: shape for name, shape in PLAIN.items() if ".mlp." in name}


def config(**fields: Any) -> HookedTransformerConfig:
    return HookedTransformerConfig(**{**BASE, **fields})


# What each field adds to and takes from PLAIN; the first ten as the dialect's own state dicts have it.
DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], list[str]]] = {
    "plain": ({}, {}, []),
    "LNPre": ({"normalization_type": "LNPre"}, {}, NORMS),
    "RMS": ({"normalization_type": "RMS"}, {}, NORM_BIASES),
    "RMSPre": ({"normalization_type": "RMSPre"}, {}, NORMS),
    "no norm": ({"normalization_type": None}, {}, NORMS),
    "final RMS": ({"final_rms": True}, {}, ["ln_final.b"]),
    "grouped": (
        {"n_key_value_heads": 1},
        {f"blocks.0.attn._{name}": (1, *ATTENTION[name][1:]) for name in ("W_K", "W_V", "b_K", "b_V")},
        [f"blocks.0.attn.{name}" for name in ("W_K", "W_V", "b_K", "b_V")],
    ),
    "MLP norm": ({"act_fn": "solu_ln"}, {"blocks.0.mlp.ln.w": (16,), "blocks.0.mlp.ln.b": (16,)}, []),
    "MLP norm, folded": ({"act_fn": "solu_ln", "normalization_type": "LNPre"}, {}, NORMS),
    "Gemma": (
        {"normalization_type": "RMSPre", "use_normalization_before_and_after": True, "use_qk_norm": True},
        {
            "blocks.0.ln1_post.w": (8,),
            "blocks.0.ln2_post.w": (8,),
            "blocks.0.attn.q_norm.w": (4,),
            "blocks.0.attn.k_norm.w": (4,),
        },
        NORMS,
    ),
    "rotary": ({"positional_embedding_type": "rotary"}, {}, ["pos_embed.W_pos"]),
    "ALiBi": (
        {"positional_embedding_type": "alibi", "post_embedding_ln": True},
        {"embed.ln.w": (8,), "embed.ln.b": (8,)},
        ["pos_embed.W_pos"],
    ),
    "shortformer": ({"positional_embedding_type": "shortformer"}, {}, []),
    "attention only": ({"attn_only": True}, {}, [*MLP, "blocks.0.ln2.w", "blocks.0.ln2.b"]),
    "gated": ({"gated_mlp": True}, {"blocks.0.mlp.W_gate": (8, 16)}, []),
    "output vocabulary": ({"d_vocab_out": 3}, {"unembed.W_U": (8, 3), "unembed.b_U": (3,)}, []),
    "mixture": (
        {"num_experts": 2, "experts_per_token": 1},
        {"blocks.0.mlp.W_gate": (8, 2)}
        | {name.replace("mlp", f"mlp.experts.{expert}"): shape for name, shape in MLP.items() for expert in range(2)},
        list(MLP),
    ),
    "full norm of queries": (
        {"use_qk_norm": True, "qk_norm_over": "full", "qk_norm_type": "LN"},
        {f"blocks.0.attn.{letter}_norm.{part}": (8,) for letter in "qk" for part in "wb"},
        [],
    ),
    "norms after only": (
        {"post_norm_only": True},
        {f"blocks.0.ln{number}_post.{part}": (8,) for number in (1, 2) for part in "wb"},
        [name for name in NORMS if "blocks" in name],
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_shapes(name: str) -> None:
    fields, added, taken = DIFFERENCES[name]
    expected = {key: shape for key, shape in PLAIN.items() if key not in taken} | added
    assert canonical.shapes(config(**fields)) == expected


def test_shapes_follow_the_forward_pass() -> None:
    assert list(canonical.shapes(config(n_layers=2))) == [
        *list(canonical.shapes(config()))[:-4],
        *[name.replace("blocks.0", "blocks.1") for name in PLAIN if "blocks" in name and "attn" not in name][:2],
        *[name.replace("blocks.0", "blocks.1") for name in canonical.shapes(config()) if ".attn." in name],
        *[name.replace("blocks.0", "blocks.1") for name in PLAIN if "blocks" in name and "attn" not in name][2:],
        *list(PLAIN)[-4:],
    ]


def test_without_a_vocabulary_there_are_no_shapes() -> None:
    with pytest.raises(ConfigError, match="set d_vocab, or give a tokenizer"):
        canonical.shapes(config(d_vocab=-1))


def test_what_fits_passes_as_tensors_as_shapes_and_with_the_old_buffers() -> None:
    cfg = config()
    canonical.check(canonical.shapes(cfg), cfg)
    weights = {name: torch.zeros(shape) for name, shape in canonical.shapes(cfg).items()}
    buffers = {f"blocks.0.{name}": torch.zeros(()) for name in canonical.BUFFERS}
    canonical.check(weights | buffers, cfg)
    assert canonical.without_buffers(weights | buffers).keys() == weights.keys()


def test_positions_that_alibi_never_reads_are_dropped_there_and_only_there() -> None:
    positions = {"pos_embed.W_pos": torch.zeros(5, 8)}
    assert canonical.without_buffers(positions, config(positional_embedding_type="alibi")) == {}
    assert canonical.without_buffers(positions, config()).keys() == positions.keys()


def test_a_misfit_lists_missing_unexpected_and_wrongly_shaped_keys() -> None:
    cfg = config()
    weights: dict[str, Any] = canonical.shapes(cfg)
    del weights["ln_final.b"], weights["embed.W_E"]
    weights["extra"] = (1,)
    weights["blocks.0.attn.W_O"] = (8, 8)
    with pytest.raises(WeightsMismatch) as error:
        canonical.check(weights, cfg)
    assert str(error.value) == (
        "the weights do not fit the configuration: 2 missing (embed.W_E, ln_final.b); 1 unexpected (extra); "
        "1 wrongly shaped (blocks.0.attn.W_O [8, 8] should be [2, 4, 8]). "
        "Compare with cutaway.weights.canonical.shapes(cfg), which lists all that is expected"
    )


def test_long_lists_are_shortened() -> None:
    with pytest.raises(WeightsMismatch, match=r"22 missing \(embed\.W_E(, [\w.]+){4} and 17 more\)\."):
        canonical.check({}, config())


@pytest.mark.parametrize(
    ("weights_of", "read_as", "advice"),
    [
        ({"n_layers": 3}, {}, "They have 3 layers: try n_layers=3"),
        ({"normalization_type": "LNPre"}, {}, "try normalization_type='LNPre'"),
        ({}, {"normalization_type": "LNPre"}, "try normalization_type='LN', then fold"),
        ({"n_key_value_heads": 1}, {}, "set n_key_value_heads"),
        ({}, {"n_key_value_heads": 1}, "try n_key_value_heads=None"),
        ({}, {"attn_only": True}, "try attn_only=False"),
    ],
)
def test_a_misfit_says_what_to_try(weights_of: dict[str, Any], read_as: dict[str, Any], advice: str) -> None:
    with pytest.raises(WeightsMismatch, match=advice):
        canonical.check(canonical.shapes(config(**weights_of)), config(**read_as))


def test_norms_that_were_folded_away_are_filled_with_ones_and_zeros() -> None:
    cfg = config()
    folded = {n: torch.full(s, 2.0, dtype=torch.float64) for n, s in canonical.shapes(config(normalization_type="LNPre")).items()}
    filled = canonical.fill_norms(folded, cfg)
    canonical.check(filled, cfg)
    assert set(filled) - set(folded) == set(NORMS)
    assert all((filled[name] == name.endswith(".w")).all() and filled[name].dtype == torch.float64 for name in NORMS)
    assert canonical.fill_norms(filled, cfg) == filled
    assert canonical.fill_norms(folded, config(normalization_type="LNPre")) == folded


def test_foldable_norms_are_the_same_before_and_after_folding() -> None:
    assert set(canonical.foldable_norms(config())) == set(NORMS)
    assert canonical.foldable_norms(config(normalization_type="LNPre")) == canonical.foldable_norms(config())
    assert canonical.foldable_norms(config(normalization_type=None)) == {}


def test_the_hash_of_a_model_follows_its_weights_and_nothing_else() -> None:
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(2)}
    fingerprint = canonical.weights_hash(weights)
    assert fingerprint == "e345b9708df34837957f81aa54c74d661515bc8d2cb8a9008bd1d6236344ce33"
    assert canonical.weights_hash({"a": weights["a"], "b": weights["b"].T.contiguous().T}) == fingerprint
    assert canonical.weights_hash(weights | {"blocks.0.attn.mask": torch.ones(1)}) == fingerprint
    changed = [
        {**weights, "a": torch.nextafter(weights["a"], torch.tensor(2.0))},
        {**weights, "b": weights["b"].view(3, 2)},
        {**weights, "a": weights["a"].double()},
        {"a": weights["b"], "b": weights["a"]},
        {"c": weights["b"], "a": weights["a"]},
    ]
    assert len({fingerprint, *map(canonical.weights_hash, changed)}) == 6
