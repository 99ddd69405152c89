"""Sites: every place of the network that can be read or changed. This file is the one table of them.

A full name (`blocks.3.attn.hook_pattern`) is what hooks, caches and figures use. A short name
(`"pattern", 3`) is what people type. Axes are the words of `cutaway.axes`, and `1` for an axis of
length one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from typing import Any, SupportsIndex

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownSite, nearest
from cutaway.numbers_given import whole

Axes = tuple[str, ...]
Table = Iterator[tuple[str, Axes]]

RESID: Axes = ("batch", "pos", "d_model")
NEURONS: Axes = ("batch", "pos", "d_mlp")
SCALE: Axes = ("batch", "pos", "1")
PATTERN: Axes = ("batch", "head", "dest", "src")
HEADS: Axes = ("batch", "pos", "head", "d_head")
HEAD_RESID: Axes = ("batch", "pos", "head", "d_model")

GATES = {  # what a predicate or an unfiltered cache sees only where this flag is set; by its name each site always works
    "hook_tokens": "use_hook_tokens",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_result": "use_attn_result",
    "hook_mlp_in": "use_hook_mlp_in",
}

# The grammar of short names.
OF_ATTN = frozenset(("q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"))
OF_MLP = frozenset(("pre", "post", "mid", "pre_linear", "expert_weights", "expert_indices"))
OF_NORM = frozenset(("scale", "normalized"))
ALIASES = {
    "attn": "pattern", "attn_logits": "attn_scores", "query": "q", "key": "k", "value": "v",
    "mlp_pre": "pre", "mlp_mid": "mid", "mlp_post": "post",
}  # fmt: skip
OUTSIDE = frozenset(("tokens", "embed", "pos_embed"))
OF_BLOCK = frozenset(
    ("resid_pre", "resid_mid", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out", "q_input", "k_input", "v_input")
)
LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
SHORT = re.compile(r"([a-z_]*[a-z])(\d+)(.*)")  # pattern3, scale4ln1


def site_names(cfg: HookedTransformerConfig) -> list[str]:
    """The full names of all sites of such a network, in the order in which a forward pass comes by."""
    return [name for name, _ in _table(cfg)]


def table(cfg: HookedTransformerConfig) -> dict[str, Axes]:
    """The full names of all sites of such a network and their axes, in firing order."""
    return dict(_table(cfg))


def axes(name: str, cfg: HookedTransformerConfig) -> Axes:
    """The axes of the site with this full (or short) name, such as `("batch", "pos", "head", "d_head")`.

    Raises:
        UnknownSite: such a network has no such site.
    """
    in_block = re.match(r"blocks\.(\d+)\.", name)
    if in_block and int(in_block[1]) < cfg.n_layers:  # what a cache asks for each site: quickly
        found = dict(_block(cfg, int(in_block[1]))).get(name[in_block.end() :])
        if found is not None:
            return found
    known = table(cfg)
    return known[resolve(name, known)]


def enabled(cfg: HookedTransformerConfig, name: str) -> bool:
    """Whether a predicate or an unfiltered cache may choose this site: some need a flag of the configuration."""
    flag = GATES.get(name.rpartition(".")[2])
    return flag is None or bool(getattr(cfg, flag))


def get_act_name(name: str, layer: SupportsIndex | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a site from its short one: `("q", 3)`, `"k6"`, `("scale", 4, "ln1")`, `"scale4ln1"`.

    A full name given alone comes back as it is. Without a layer, `scale` and `normalized` mean those of
    the final norm. Whether a network has such a site is not asked here; see `resolve`.
    """
    if layer is not None and not isinstance(layer, str):
        layer = whole(layer, "a layer")
    if layer is None and layer_type is None and ("." in name or name.startswith("hook_")):
        return name
    if short := SHORT.match(name):
        name, layer, layer_type = short.groups()
    name = ALIASES.get(name, name)
    if name in OF_ATTN:
        layer_type = "attn"
    elif name in OF_MLP:
        layer_type = "mlp"
    elif layer_type is not None:
        layer_type = LAYER_TYPES.get(layer_type, layer_type)
    parts = [] if layer is None else ["blocks", str(layer)]
    if name in OF_NORM and layer is None:
        parts.append("ln_final")
    if layer_type:
        parts.append(layer_type)
    return ".".join([*parts, f"hook_{name}"])


def spelled(name: str) -> str:
    """The full name of a site that some network has, from a full or a short one.

    Raises:
        UnknownSite: no network has a site of that name; says the nearest, or that it lacks a layer.
    """
    full = get_act_name(name)
    short = full.rpartition(".")[2].removeprefix("hook_")
    known = OUTSIDE | OF_BLOCK | OF_ATTN | OF_MLP | OF_NORM
    if short not in known:
        near = nearest(short, sorted(known))
        raise UnknownSite(f"no site called {name!r}{near}; write a short name and a layer, as 'resid_post5'")
    if not full.startswith("blocks.") and short not in OUTSIDE | OF_NORM:
        raise UnknownSite(f"no site called {name!r} outside the blocks; give a layer, as in {short + '0'!r}")
    return full


def split_name(full: str) -> tuple[str, int | None, str | None]:
    """The reverse: (short name, layer, layer type), so that `get_act_name(*split_name(full)) == full`."""
    block = re.fullmatch(r"blocks\.(\d+)\.(?:(.+)\.)?hook_(\w+)", full)
    if block is None:
        plain = re.fullmatch(r"(?:ln_final\.)?hook_(\w+)", full)
        short = plain[1] if plain else full
        return (short if get_act_name(short) == full else full), None, None
    layer_type, short = block[2], block[3]
    if get_act_name(short, int(block[1])) == full:
        layer_type = None
    return short, int(block[1]), layer_type


def resolve(name: str | tuple[Any, ...], names: Collection[str], n_layers: int | None = None) -> str:
    """The one of `names` that `name` means: a full name, a short one, or a tuple (short, layer, layer type).

    A layer may be negative where `n_layers` is given.

    Raises:
        UnknownSite: there is none; the message says the nearest, or which layers there are.
    """
    if isinstance(name, str):
        if name in names:
            return name
        full = get_act_name(name)
    elif isinstance(name, tuple) and 1 <= len(name) <= 3 and isinstance(name[0], str):
        short, layer, layer_type = (*name, None, None)[:3]
        layer = layer if layer is None or isinstance(layer, str) else whole(layer, "a layer")  # a 0-d tensor is a number
        if isinstance(layer, int) and layer < 0 and n_layers is not None:
            layer += n_layers
        full = get_act_name(short, layer, layer_type)
    else:
        raise UnknownSite(f"{name!r} names no site; give a name, as 'blocks.0.attn.hook_q', or a tuple, as ('q', 0)")
    if full in names:
        return full
    per_layer = [other for other in names if other.startswith("blocks.") and other.endswith(f".{full}")]
    if per_layer:
        raise UnknownSite(f"no site called {name!r} outside the blocks; give a layer, as in {per_layer[0]!r}")
    called = f"{name!r}" if full == name else f"{name!r} ({full!r})"
    raise UnknownSite(f"no site called {called}{why_absent(full, names) or _near(full, names)}")


MLP_SITE = re.compile(r"blocks\.\d+\.(mlp|ln2|ln2_post|hook_mlp_in|hook_mlp_out|hook_resid_mid)(\.|$)")


def why_absent(full: str, names: Collection[str]) -> str:
    """Hint for an error about a missing site, e.g. '; there are 2 layers, 0 and 1', or that there are no MLPs; else empty."""
    if MLP_SITE.match(full) and names and not any(map(MLP_SITE.match, names)):
        return "; there are no sites of MLPs here: an attention-only model has none"
    return _layers_there(full, names)


def _layers_there(full: str, names: Collection[str]) -> str:
    """Which layers there are, where the site is of another; else empty."""
    requested = re.match(r"blocks\.(-?\d+)\.", full)
    found = sorted({int(block[1]) for block in map(re.compile(r"blocks\.(\d+)\.").match, names) if block})
    if requested is None or not found or int(requested[1]) in found:
        return ""
    if len(found) == 1:
        return f"; there is only layer {found[0]}"
    together = found == list(range(found[0], found[-1] + 1)) and len(found) > 2
    listed = f"{found[0]} to {found[-1]}" if together else ", ".join(map(str, found[:-1])) + f" and {found[-1]}"
    return f"; there are {len(found)} layers, {listed}"


def _near(full: str, names: Collection[str]) -> str:
    """The end of the sentence: names like this one, comparing a name without a place with the last parts only."""
    if not names:
        return "; there are none"
    lasts = {name.rpartition(".")[2]: name for name in reversed(list(names))}  # the first of each
    if "." not in full and (near := difflib.get_close_matches(full, lasts, n=1, cutoff=0.75)):
        return f" (did you mean {lasts[near[0]]!r}?)"
    return nearest(full, names) or f"; there are {len(names)}, such as {', '.join(map(repr, list(names)[:3]))}"


# The table itself, in firing order.


def _table(cfg: HookedTransformerConfig) -> Table:
    yield "hook_tokens", ("batch", "pos")
    if cfg.post_embedding_ln:
        yield from _norm("embed.ln")
    yield "hook_embed", RESID
    if cfg.positional_embedding_type in ("standard", "shortformer"):
        yield "hook_pos_embed", RESID
    for layer in range(cfg.n_layers):
        yield from ((f"blocks.{layer}.{name}", axes) for name, axes in _block(cfg, layer))
    if cfg.normalization_type is not None:
        yield from _norm("ln_final")


def _norm(name: str, *, scale: Axes = SCALE, normalized: Axes = RESID) -> Table:
    yield f"{name}.hook_scale", scale
    yield f"{name}.hook_normalized", normalized


def _block(cfg: HookedTransformerConfig, layer: int) -> Table:
    norm_before = cfg.normalization_type is not None and not cfg.post_norm_only
    kv = _kv(cfg)
    yield "hook_resid_pre", RESID
    yield "hook_attn_in", HEAD_RESID
    yield "hook_q_input", HEAD_RESID
    yield "hook_k_input", ("batch", "pos", kv, "d_model")
    yield "hook_v_input", ("batch", "pos", kv, "d_model")
    if norm_before:
        if cfg.use_attn_in or cfg.use_split_qkv_input:
            head = kv if cfg.use_split_qkv_input else "head"  # split: queries first, values last, and a cache keeps the last
            yield from _norm("ln1", scale=("batch", "pos", head, "1"), normalized=("batch", "pos", head, "d_model"))
        else:
            yield from _norm("ln1")
    yield from ((f"attn.{name}", axes) for name, axes in _attention(cfg, layer))
    if cfg.has_post_norms:
        yield from _norm("ln1_post")
    yield "hook_attn_out", RESID
    if not cfg.attn_only:
        if not cfg.parallel_attn_mlp:
            yield "hook_resid_mid", RESID
        yield "hook_mlp_in", RESID
        if norm_before:
            yield from _norm("ln2")
        yield from ((f"mlp.{name}", axes) for name, axes in _mlp(cfg, layer))
        if cfg.has_post_norms:
            yield from _norm("ln2_post")
        yield "hook_mlp_out", RESID
    yield "hook_resid_post", RESID


def _kv(cfg: HookedTransformerConfig) -> str:
    """The axis of keys and values: `kv` where groups of heads share them."""
    return "head" if cfg.n_key_value_heads is None or cfg.ungroup_grouped_query_attention else "kv"


def _attention(cfg: HookedTransformerConfig, layer: int) -> Table:
    keys: Axes = ("batch", "pos", _kv(cfg), "d_head")
    yield "hook_q", HEADS
    yield "hook_k", keys
    yield "hook_v", keys
    if cfg.use_qk_norm:
        for name, of in (("q_norm", HEADS), ("k_norm", keys)):
            if cfg.qk_norm_over != "full":
                yield from _norm(name, scale=(*of[:-1], "1"), normalized=of)
            else:  # all heads side by side
                yield from _norm(name, normalized=("batch", "pos", f"{of[2]}*d_head"))
    if cfg.rotates(layer):
        yield "hook_rot_q", HEADS
        yield "hook_rot_k", keys
    yield "hook_attn_scores", PATTERN
    yield "hook_pattern", PATTERN
    yield "hook_z", HEADS
    yield "hook_result", HEAD_RESID


def _mlp(cfg: HookedTransformerConfig, layer: int) -> Table:
    if cfg.is_moe(layer):
        yield "hook_expert_weights", ("batch", "pos", "expert")
        yield "hook_expert_indices", ("batch", "pos", "chosen")
        return
    yield "hook_pre", NEURONS
    if cfg.gated_mlp:
        yield "hook_pre_linear", NEURONS
    if cfg.has_mlp_norm:
        yield "hook_mid", NEURONS
        yield from _norm("ln", normalized=NEURONS)
    yield "hook_post", NEURONS


def axis_length(word: str, cfg: HookedTransformerConfig, batch: int, length: int) -> int:
    """How long an axis is, by its word; 0 where that is nobody's business."""
    known = {
        "batch": batch, "pos": length, "dest": length, "src": length, "head": cfg.n_heads, "kv": cfg.kv_heads, "1": 1,
        "d_model": cfg.d_model, "d_head": cfg.d_head, "d_mlp": cfg.d_mlp or 0, "expert": cfg.num_experts or 0,
        "chosen": cfg.experts_per_token or 0, "head*d_head": cfg.n_heads * cfg.d_head, "kv*d_head": cfg.kv_heads * cfg.d_head,
    }  # fmt: skip
    return known[word]
