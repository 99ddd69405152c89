"""Sites: names, axes and order of what a forward pass comes by."""

from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownSite
from cutaway.model.sites import axes, enabled, get_act_name, resolve, site_names, spelled, split_name
from cutaway.model.transformer import Transformer


def config(**changes: Any) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        **{"n_layers": 2, "d_model": 8, "n_ctx": 6, "d_head": 4, "d_vocab": 11, "act_fn": "gelu", "device": "cpu"} | changes
    )


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attn-only": {"attn_only": True, "act_fn": None},
    "llama": {"gated_mlp": True, "positional_embedding_type": "rotary", "normalization_type": "RMS", "n_key_value_heads": 1},
    "neox": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_layers": [True, False]},
    "solu": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "bare": {"normalization_type": None, "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "gemma": {"use_normalization_before_and_after": True, "normalization_type": "RMS", "use_qk_norm": True},
    "olmo2": {"post_norm_only": True, "normalization_type": "RMS", "use_qk_norm": True, "qk_norm_over": "full"},
    "moe": {"num_experts": 3, "experts_per_token": 2, "moe_layers": [False, True]},
    "split": {"use_split_qkv_input": True, "n_key_value_heads": 1},
}


def test_a_plain_network_has_these_sites_in_this_order() -> None:
    block = """hook_resid_pre hook_attn_in hook_q_input hook_k_input hook_v_input ln1.hook_scale ln1.hook_normalized
        attn.hook_q attn.hook_k attn.hook_v attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result hook_attn_out
        hook_resid_mid hook_mlp_in ln2.hook_scale ln2.hook_normalized mlp.hook_pre mlp.hook_post hook_mlp_out hook_resid_post"""
    assert site_names(config()) == [
        *["hook_tokens", "hook_embed", "hook_pos_embed"],
        *(f"blocks.{layer}.{name}" for layer in range(2) for name in block.split()),
        *["ln_final.hook_scale", "ln_final.hook_normalized"],
    ]


def differing(kind: str) -> tuple[set[str], set[str]]:
    """What the last block (and what is outside) has beyond a plain network, and what it lacks."""

    def of(names: list[str]) -> set[str]:
        return {name.removeprefix("blocks.1.") for name in names if not name.startswith("blocks.0.")}

    here, plain = of(site_names(config(**CONFIGS[kind]))), of(site_names(config()))
    return here - plain, plain - here


def norm(*names: str) -> set[str]:
    return {f"{name}.{site}" for name in names for site in ("hook_scale", "hook_normalized")}


def test_architectures_differ_in_these_sites() -> None:
    mlp = {"mlp.hook_pre", "mlp.hook_post"}
    rotary = {"attn.hook_rot_q", "attn.hook_rot_k"}
    assert differing("attn-only") == (set(), mlp | norm("ln2") | {"hook_mlp_out", "hook_mlp_in", "hook_resid_mid"})
    assert differing("llama") == (rotary | {"mlp.hook_pre_linear"}, {"hook_pos_embed"})
    assert differing("neox") == (set(), {"hook_pos_embed", "hook_resid_mid"})  # its last layer does not rotate
    assert "blocks.0.attn.hook_rot_q" in site_names(config(**CONFIGS["neox"]))
    assert differing("solu") == ({"mlp.hook_mid", *norm("mlp.ln")}, set())
    assert differing("bare") == (norm("embed.ln"), {"hook_pos_embed", *norm("ln1", "ln2", "ln_final")})
    assert differing("gemma") == (norm("ln1_post", "ln2_post", "attn.q_norm", "attn.k_norm"), set())
    assert differing("olmo2") == (norm("ln1_post", "ln2_post", "attn.q_norm", "attn.k_norm"), norm("ln1", "ln2"))
    assert differing("moe") == ({"mlp.hook_expert_weights", "mlp.hook_expert_indices"}, mlp)
    assert "blocks.0.mlp.hook_pre" in site_names(config(**CONFIGS["moe"]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_site_has_one_name_and_axes_and_a_short_name_that_leads_back(kind: str) -> None:
    cfg = config(**CONFIGS[kind])
    names = site_names(cfg)
    assert len(set(names)) == len(names)
    for name in names:
        assert get_act_name(*split_name(name)) == name == spelled(name)
        assert resolve(name, names) == name
        assert resolve(split_name(name), names) == name
        assert axes(name, cfg)[0] == "batch"


def test_axes_are_those_of_the_shapes() -> None:
    cfg = config(n_key_value_heads=1)
    assert axes("q0", cfg) == ("batch", "pos", "head", "d_head")
    assert axes("k1", cfg) == axes("v1", cfg) == ("batch", "pos", "kv", "d_head")
    assert axes("blocks.1.hook_k_input", cfg) == ("batch", "pos", "kv", "d_model")
    assert axes("k1", config()) == ("batch", "pos", "head", "d_head")
    assert axes("k1", config(n_key_value_heads=1, ungroup_grouped_query_attention=True)) == ("batch", "pos", "head", "d_head")
    assert axes("pattern0", cfg) == ("batch", "head", "dest", "src")
    assert axes("result0", cfg) == ("batch", "pos", "head", "d_model")
    assert axes("resid_mid1", cfg) == ("batch", "pos", "d_model")
    assert axes("scale", cfg) == ("batch", "pos", "1")
    assert axes("scale0ln1", config(use_attn_in=True)) == ("batch", "pos", "head", "1")
    assert axes("normalized0ln1", config(**CONFIGS["split"])) == ("batch", "pos", "kv", "d_model")  # the values' turn is last
    assert axes("normalized0ln1", cfg) == ("batch", "pos", "d_model")
    assert axes("blocks.0.mlp.ln.hook_normalized", config(**CONFIGS["solu"])) == ("batch", "pos", "d_mlp")
    assert axes("blocks.0.attn.k_norm.hook_scale", config(use_qk_norm=True, n_key_value_heads=1)) == ("batch", "pos", "kv", "1")
    assert axes("blocks.0.attn.k_norm.hook_scale", config(**CONFIGS["olmo2"])) == ("batch", "pos", "1")
    with pytest.raises(UnknownSite):
        axes("rot_q0", cfg)


def test_flags_decide_what_a_predicate_sees() -> None:
    flags = ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in", "use_hook_tokens"]
    shown = {flag: {name for name in site_names(config()) if enabled(config(**{flag: True}), name)} for flag in flags}
    none = {name for name in site_names(config()) if enabled(config(), name)}
    assert {flag: sorted({split_name(name)[0] for name in names - none}) for flag, names in shown.items()} == {
        "use_attn_result": ["result"],
        "use_split_qkv_input": ["k_input", "q_input", "v_input"],
        "use_attn_in": ["attn_in"],
        "use_hook_mlp_in": ["mlp_in"],
        "use_hook_tokens": ["tokens"],
    }
    assert len(none) == len(site_names(config())) - 6 * 2 - 1


def test_short_names_follow_the_dialect() -> None:
    for arguments, full in {
        ("q", 3): "blocks.3.attn.hook_q",
        ("scale4ln1",): "blocks.4.ln1.hook_scale",
        ("k6",): "blocks.6.attn.hook_k",
        ("k", 6, "a"): "blocks.6.attn.hook_k",
        ("pre", 2): "blocks.2.mlp.hook_pre",
        ("pre5",): "blocks.5.mlp.hook_pre",
        ("normalized", 27, "ln2"): "blocks.27.ln2.hook_normalized",
        ("embed",): "hook_embed",
        ("hook_embed",): "hook_embed",
        ("scale",): "ln_final.hook_scale",
        ("normalized", None): "ln_final.hook_normalized",
        ("attn", 1): "blocks.1.attn.hook_pattern",
        ("attn_logits", 1): "blocks.1.attn.hook_attn_scores",
        ("value", 1, "m"): "blocks.1.attn.hook_v",
        ("mlp_post", 1): "blocks.1.mlp.hook_post",
        ("resid_pre", 1, "block"): "blocks.1.hook_resid_pre",
        ("out", 1, "attention"): "blocks.1.attn.hook_out",
        ("out", 1, "m"): "blocks.1.mlp.hook_out",
        ("mlp_out", 0): "blocks.0.hook_mlp_out",
        ("attn_out0",): "blocks.0.hook_attn_out",  # beyond the dialect: a short name may have underscores
        ("expert_weights", 1): "blocks.1.mlp.hook_expert_weights",
        ("blocks.1.hook_resid_pre",): "blocks.1.hook_resid_pre",
        ("pattern", "2"): "blocks.2.attn.hook_pattern",
    }.items():
        assert get_act_name(*arguments) == full


def test_a_name_is_found_or_the_nearest_ones_are_named() -> None:
    names = site_names(config())
    assert resolve(("pattern", -1), names, n_layers=2) == "blocks.1.attn.hook_pattern"
    assert resolve(("scale", -2, "ln2"), names, n_layers=2) == "blocks.0.ln2.hook_scale"
    assert resolve("resid_pre1", names) == "blocks.1.hook_resid_pre"
    for asked, message in {
        ("pattern", 2): r"\('pattern', 2\) \('blocks.2.attn.hook_pattern'\); there are 2 layers, 0 and 1$",
        "blocks.7.hook_resid_pre": "no site called 'blocks.7.hook_resid_pre'; there are 2 layers, 0 and 1$",
        "blocks.-3.hook_resid_pre": "there are 2 layers, 0 and 1$",
        "blocks.0.atn.hook_q": "did you mean 'blocks.0.attn.hook_q'",
        "pattern": "give a layer, as in 'blocks.0.attn.hook_pattern'",
        "patern": "did you mean 'blocks.0.attn.hook_pattern'",
        "wwwwwwww": "there are 51, such as 'hook_tokens'",
        ("q", 0, "attn", 1): "names no site",
        (0, "q"): "names no site",
    }.items():
        with pytest.raises(UnknownSite, match=message):
            resolve(asked, names)
    with pytest.raises(UnknownSite, match="there are none"):
        resolve("q0", [])
    for layers, message in {
        (4,): "there is only layer 4$",
        (0, 1, 2, 3): "4 layers, 0 to 3$",
        (1, 4, 5): "3 layers, 1, 4 and 5$",
    }.items():
        with pytest.raises(UnknownSite, match=message):
            resolve("blocks.9.hook_resid_pre", [f"blocks.{layer}.hook_resid_pre" for layer in layers])


@pytest.mark.parametrize("site", ["mlp_out0", ("mlp_out", 0), ("post", 1), "mlp_in1", ("resid_mid", 0), "scale1ln2"])
def test_a_network_without_mlps_says_so(site: str | tuple[str, int]) -> None:
    cfg = config(**CONFIGS["attn-only"])
    with pytest.raises(UnknownSite, match=r"there are no sites of MLPs here: an attention-only model has none$"):
        resolve(site, site_names(cfg))
    with pytest.raises(UnknownSite, match="no sites of MLPs here"):
        Transformer(cfg).add_hook(resolve(site, site_names(config())), lambda x, hook: x)
    with pytest.raises(UnknownSite, match=r"there are 2 layers, 0 and 1$"):
        resolve("mlp_out7", site_names(config()))


def test_a_hook_on_a_layer_that_is_not_there_says_which_layers_are() -> None:
    with pytest.raises(UnknownSite, match=r"'blocks.7.hook_resid_pre'; there are 2 layers, 0 and 1; model.hook_dict lists all"):
        Transformer(config()).add_hook("blocks.7.hook_resid_pre", lambda x, hook: x)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_passes_the_sites_in_this_order_with_these_axes(kind: str) -> None:
    cfg = config(**CONFIGS[kind], init_weights=True, seed=0)
    _, kept = Transformer(cfg).run_with_cache(torch.zeros(3, 5, dtype=torch.long), names_filter=site_names(cfg))
    sizes = {"batch": 3, "pos": 5, "dest": 5, "src": 5, "head": 2, "kv": cfg.kv_heads, "d_model": 8, "d_head": 4}
    sizes |= {"d_mlp": 32, "1": 1, "expert": 3, "chosen": 2, "head*d_head": 8}
    assert list(kept) == site_names(cfg)
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        name: tuple(sizes[word] for word in axes(name, cfg)) for name in site_names(cfg)
    }
