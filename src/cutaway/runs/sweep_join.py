"""Where a cell leaves the clean run: from an edited site to the residual stream after that layer.

Everything before the edited site is the clean run's, which was kept; so a cell enters in the middle of a layer and
computes only what its edit reaches there: the edited heads, the edited positions, and nothing where the edit changes
nothing. What heads add beyond the clean run is added to the clean run's output, `attn_out + (z' − z) W_O`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutaway.model.products import linear
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, index_of
from cutaway.runs.sweep_clean import Clean, rows_of

# Sites where a cell with one edit can enter, and the sites of the layer that it needs kept. `*`: with an MLP.
ENTRIES: dict[str, tuple[str, ...]] = {
    "hook_resid_pre": (),
    "attn.hook_q": ("attn.hook_q", "attn.hook_z", "hook_attn_out"),
    "attn.hook_k": ("attn.hook_k", "attn.hook_z", "hook_attn_out"),
    "attn.hook_v": ("attn.hook_z", "hook_attn_out"),
    "attn.hook_rot_q": ("attn.hook_z", "hook_attn_out"),
    "attn.hook_rot_k": ("attn.hook_z", "hook_attn_out"),
    "attn.hook_pattern": ("attn.hook_z", "hook_attn_out"),
    "attn.hook_z": ("attn.hook_z", "hook_attn_out"),
    "attn.hook_result": ("attn.hook_z", "hook_attn_out"),
    "hook_attn_out": ("hook_attn_out",),
    "hook_resid_mid": ("hook_resid_mid",),
    "mlp.hook_post": ("mlp.hook_post", "hook_mlp_out", "hook_resid_mid"),
    "hook_mlp_out": ("hook_mlp_out", "hook_resid_mid"),
    "hook_resid_post": (),
}


def needed_sites(model: Transformer, bound: Bound) -> list[str]:
    """The sites that the clean run must keep for a cell with this edit, by full name."""
    cfg, layer = model.cfg, bound.layer
    assert layer is not None
    names = list(ENTRIES[short(bound.site)])
    if cfg.parallel_attn_mlp and not cfg.attn_only:
        names = ["hook_attn_out" if name == "hook_resid_mid" else name for name in names] + ["hook_mlp_out"]
    return [f"blocks.{layer}.{name}" for name in dict.fromkeys(names)]


def short(site: str) -> str:
    """The rest of a site's name after its layer."""
    return site.split(".", 2)[2] if site.startswith("blocks.") else site


@dataclass(frozen=True, eq=False)
class Part:
    """Some positions of some examples: what a cell has changed of an activation, `[example, place, …]`."""

    examples: Tensor | None  # None: all
    places: Tensor  # ascending positions
    value: Tensor

    def of(self, x: Tensor) -> Tensor:
        """The same part of an activation of the clean run."""
        places = as_slice(self.places)
        return x[:, places] if self.examples is None else x[self.examples][:, places]

    def with_value(self, value: Tensor) -> Part:
        return Part(self.examples, self.places, value)

    def only(self, asked: Tensor | None) -> Part | None:
        """The part at these positions only (None: all); None where nothing is left."""
        if asked is None:
            return self
        chosen = torch.isin(self.places, asked)
        if not bool(chosen.any()):
            return None
        return self if bool(chosen.all()) else Part(self.examples, self.places[chosen], self.value[:, chosen])


def as_slice(numbers: Tensor) -> slice | Tensor:
    """A slice where ascending numbers are neighbours, so that a view suffices."""
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


def changed(bound: Bound, clean: Tensor) -> tuple[Part, Tensor] | None:
    """What an edit makes of the clean activation at its site: the new values where they differ, and the old ones.

    The part keeps only the chosen heads and neurons. None: the edit changes nothing at all.
    """
    old = clean[bound.index()]
    new = bound.change.new(old, bound.value(clean)).to(old.dtype)
    differs = (new != old).flatten(2).any(-1)
    places = torch.tensor(bound.positions, device=old.device) if bound.positions is not None else None
    return _where(bound, differs, places, new, old)


def _where(bound: Bound, differs: Tensor, places: Tensor | None, new: Tensor, old: Tensor) -> tuple[Part, Tensor] | None:
    by_place, by_example = differs.any(0), differs.any(1)
    if not bool(by_place.any()):
        return None
    if places is None:
        places = torch.arange(len(by_place), device=differs.device)
    if not bool(by_place.all()):
        places, new, old = places[by_place], new[:, by_place], old[:, by_place]
    order = places.argsort()
    if not torch.equal(order, torch.arange(len(order), device=order.device)):
        places, new, old = places[order], new[:, order], old[:, order]
    examples = None
    if bound.chosen[0] is not None:
        examples = torch.tensor(bound.chosen[0], device=differs.device)
    if not bool(by_example.all()):
        new, old = new[by_example], old[by_example]
        examples = by_example.nonzero().flatten() if examples is None else examples[by_example]
    return Part(examples, places, new), old


@dataclass(frozen=True, eq=False)
class Entry:
    """What a cell has changed when it comes out of its first layer: of the stream before the layer, at the middle
    of it (attention done, MLP not yet), or after it."""

    stage: str  # "pre", "mid" or "post"
    part: Part


def enter(model: Transformer, clean: Clean, bound: Bound, asked: Tensor | None) -> Entry | None:
    """Follow one edit to the stream of its layer; None where it changes nothing that anybody reads.

    Args:
        asked: in the last layer, the positions that the metric reads; None: all.
    """
    layer, site = bound.layer, short(bound.site)
    assert layer is not None
    cfg = model.cfg
    last = asked if layer == cfg.n_layers - 1 else None
    if site in ("hook_resid_pre", "hook_resid_post"):
        found = changed(bound, clean.resid[layer + (site == "hook_resid_post")])
        if found is None:
            return None
        part = found[0] if site == "hook_resid_pre" else found[0].only(last)
        return None if part is None else Entry("pre" if site == "hook_resid_pre" else "post", part)
    if site == "mlp.hook_post":
        return _after_neurons(model, clean, bound, last)
    if site in ("hook_mlp_out", "hook_resid_mid", "hook_attn_out"):
        found = changed(bound, clean.store[bound.site])
        part = None if found is None else found[0].only(last)
        if part is None:
            return None
        if site == "hook_resid_mid":
            return Entry("mid", part)
        return _after_attention(model, clean, layer, part) if site == "hook_attn_out" else _after_mlp(model, clean, layer, part)
    part = _attention_out(model, clean, bound, last)
    return None if part is None else _after_attention(model, clean, layer, part)


def _after_attention(model: Transformer, clean: Clean, layer: int, attn_out: Part) -> Entry:
    """From what attention adds."""
    resid = attn_out.of(clean.resid[layer]) + attn_out.value
    if model.cfg.attn_only:
        return Entry("post", attn_out.with_value(resid))
    if model.cfg.parallel_attn_mlp:
        return Entry("post", attn_out.with_value(resid + attn_out.of(clean.site(layer, "hook_mlp_out"))))
    return Entry("mid", attn_out.with_value(resid))


def _after_mlp(model: Transformer, clean: Clean, layer: int, mlp_out: Part) -> Entry:
    """From what the MLP adds."""
    if model.cfg.parallel_attn_mlp:
        resid = mlp_out.of(clean.resid[layer]) + mlp_out.of(clean.site(layer, "hook_attn_out"))
    else:
        resid = mlp_out.of(clean.site(layer, "hook_resid_mid"))
    return Entry("post", mlp_out.with_value(resid + mlp_out.value))


def _after_neurons(model: Transformer, clean: Clean, bound: Bound, asked: Tensor | None) -> Entry | None:
    """From edited neurons: their part of the output weights is all that is multiplied."""
    layer, block = bound.layer, model.blocks[bound.layer]
    assert layer is not None
    found = changed(bound, clean.store[bound.site])
    if found is None:
        return None
    difference = found[0].with_value(found[0].value - found[1]).only(asked)
    if difference is None:
        return None
    neurons = bound.chosen[-1]
    weights = block.mlp.W_out if neurons is None else block.mlp.W_out[list(neurons)]
    if isinstance(block.ln2_post, nn.Identity):
        written = difference.of(clean.site(layer, "hook_mlp_out")) + linear(difference.value, weights)
    else:
        post = difference.of(clean.store[bound.site]).clone()
        post[..., slice(None) if neurons is None else list(neurons)] += difference.value
        written = block.ln2_post(linear(post, block.mlp.W_out, block.mlp.b_out))
    return _after_mlp(model, clean, layer, difference.with_value(written))


# Attention.


def _attention_out(model: Transformer, clean: Clean, bound: Bound, asked: Tensor | None) -> Part | None:
    """What attention adds, where an edit of one of its parts changes it."""
    layer, site = bound.layer, short(bound.site)
    assert layer is not None
    block = model.blocks[layer]
    W_O = block.attn.W_O
    if site == "attn.hook_result":
        return _from_result(model, clean, bound, asked)
    if site == "attn.hook_z":
        found = changed(bound, clean.store[bound.site])
        if found is None:
            return None
        z, old, heads = *found, bound.heads
    else:
        seen = _seen(model, clean, bound, asked)
        if seen is None:
            return None
        z, old, heads = seen
    difference = z.with_value(z.value - old).only(asked)
    if difference is None:
        return None
    if isinstance(block.ln1_post, nn.Identity):
        chosen = W_O if heads is None else W_O[_list(heads)]
        written = linear(difference.value.flatten(2), chosen.flatten(0, 1))
        return difference.with_value(difference.of(clean.site(layer, "hook_attn_out")) + written)
    whole = difference.of(clean.site(layer, "attn.hook_z")).clone()
    whole[:, :, slice(None) if heads is None else _list(heads)] += difference.value
    return difference.with_value(block.ln1_post(block.attn.output(whole)))


def _from_result(model: Transformer, clean: Clean, bound: Bound, asked: Tensor | None) -> Part | None:
    """From edited per-head results, which are built for the chosen heads only."""
    layer = bound.layer
    assert layer is not None
    block, heads = model.blocks[layer], bound.heads
    chosen = slice(None) if heads is None else _list(heads)
    z = clean.site(layer, "attn.hook_z")
    index = index_of([*bound.chosen[:2], None, None], z.shape)
    result = torch.einsum("bphd,hdm->bphm", z[index][:, :, chosen], block.attn.W_O[chosen])
    new = bound.change.new(result, bound.value(None)).to(result.dtype)
    places = None if bound.positions is None else torch.tensor(bound.positions, device=z.device)
    found = _where(bound, (new != result).flatten(2).any(-1), places, new, result)
    if found is None:
        return None
    difference = found[0].with_value((found[0].value - found[1]).sum(2)).only(asked)
    if difference is None:
        return None
    if isinstance(block.ln1_post, nn.Identity):
        return difference.with_value(difference.of(clean.site(layer, "hook_attn_out")) + difference.value)
    whole = block.attn.output(difference.of(z)) + difference.value
    return difference.with_value(block.ln1_post(whole))


def _seen(
    model: Transformer, clean: Clean, bound: Bound, asked: Tensor | None
) -> tuple[Part, Tensor, tuple[int, ...] | None] | None:
    """What heads have seen after an edit of queries, keys, values or patterns: new, clean, and which heads."""
    layer, site = bound.layer, short(bound.site)
    assert layer is not None
    which = site.rpartition("_")[2]
    if which == "pattern":
        return _seen_by_pattern(model, clean, bound)
    raw = which in "qk" and "rot" not in site
    kept = clean.read[layer]["qkv".index(which)] if not raw else clean.store[bound.site]
    found = changed(bound, kept)
    if found is None:
        return None
    part = found[0]
    cfg, attention = model.cfg, model.blocks[layer].attn
    together = cfg.positional_embedding_type == "alibi" or (cfg.use_qk_norm and cfg.qk_norm_over == "full" and raw)
    own = bound.heads
    if together and own is not None:  # heads that cannot be computed alone
        whole = part.of(kept).clone()
        whole[:, :, _list(own)] = part.value
        part, own = part.with_value(whole), None
    value = attention.as_read(part.value, which, rows_of(clean, part.examples, at=part.places)) if raw else part.value
    times = cfg.n_heads // kept.shape[2]
    heads = own if own is None or which == "q" or times == 1 else tuple(h * times + i for h in own for i in range(times))
    seen_at = _reached(model, part.places, clean.length, alone=which == "q")
    if asked is not None:
        seen_at = seen_at[torch.isin(seen_at, asked)]
    if not len(seen_at):
        return None
    place = Part(part.examples, seen_at, part.value)
    full = as_slice(seen_at)
    q, k, v = (_picked(x, part.examples, _matching(x, heads, cfg.n_heads)) for x in clean.read[layer])
    if which == "q":
        if asked is not None and len(seen_at) < len(part.places):
            value = value[:, torch.isin(part.places, seen_at)]
        q = value
    else:
        edited = (k if which == "k" else v).clone()
        edited[:, as_slice(part.places)] = value if own is None else _spread(value, own, edited)
        k, v = (edited, v) if which == "k" else (k, edited)
        q = q[:, full]
    stream = rows_of(clean, part.examples, at=None if len(seen_at) == clean.length else seen_at)
    z = attention.attend(q, k, v, stream)
    old = place.of(clean.site(layer, "attn.hook_z"))
    return place.with_value(z), old if heads is None else old[:, :, _list(heads)], heads


def _seen_by_pattern(model: Transformer, clean: Clean, bound: Bound) -> tuple[Part, Tensor, tuple[int, ...] | None] | None:
    """From an edited pattern: only the chosen heads' rows are computed."""
    layer, cfg = bound.layer, model.cfg
    assert layer is not None
    heads = bound.heads if cfg.positional_embedding_type != "alibi" else None
    q, k, v = (_picked(x, None, _matching(x, heads, cfg.n_heads)) for x in clean.read[layer])
    rows = bound.chosen[2]
    at = None if rows is None else torch.tensor(sorted(rows), device=q.device)
    stream = rows_of(clean, None, at=at)
    attention = model.blocks[layer].attn
    pattern = attention.pattern(q if at is None else q[:, at], k, stream)
    inner = list(bound.chosen)
    inner[1] = None if heads is not None else inner[1]
    inner[2] = None if rows is None else tuple(sorted(rows).index(row) for row in rows)
    new = pattern.clone()
    index = index_of(inner, pattern.shape)
    new[index] = bound.change.new(new[index], bound.value(None)).to(new.dtype)
    differs = (new != pattern).any(-1).any(1)  # example, dest
    by_row, by_example = differs.any(0), differs.any(1)
    if not bool(by_row.any()):
        return None
    places = (torch.arange(clean.length, device=q.device) if at is None else at)[by_row]
    examples = None if bool(by_example.all()) else by_example.nonzero().flatten()
    new, v = (new, v) if examples is None else (new[examples], v[examples])
    place = Part(examples, places, new)
    v = v.repeat_interleave(new.shape[1] // v.shape[2], dim=2) if v.shape[2] != new.shape[1] else v
    z = (new[:, :, by_row].to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
    old = place.of(clean.site(layer, "attn.hook_z"))
    return place.with_value(z), old if heads is None else old[:, :, _list(heads)], heads


def _reached(model: Transformer, places: Tensor, length: int, *, alone: bool) -> Tensor:
    """Which positions see something else when these positions' queries (`alone`), or keys and values, change."""
    if alone:
        return places
    first = int(places[0]) if model.cfg.attention_dir == "causal" else 0
    return torch.arange(first, length, device=places.device)


def _matching(x: Tensor, heads: tuple[int, ...] | None, n_heads: int) -> list[int] | None:
    """The heads of `x` that these attention heads read: groups of them share keys and values."""
    if heads is None:
        return None
    times = n_heads // x.shape[2]
    return [head // times for head in heads]


def _picked(x: Tensor, examples: Tensor | None, heads: list[int] | None) -> Tensor:
    x = x if examples is None else x[examples]
    if heads is None:
        return x
    first = heads[0]
    neighbours = heads == list(range(first, first + len(heads)))
    return x[:, :, first : first + len(heads)] if neighbours else x[:, :, heads]


def _spread(value: Tensor, own: tuple[int, ...], like: Tensor) -> Tensor:
    """Edited keys or values once for each attention head that reads them."""
    times = like.shape[2] // len(own)
    return value if times == 1 else value.repeat_interleave(times, dim=2)


def _list(heads: tuple[int, ...]) -> slice | list[int]:
    first = heads[0]
    return slice(first, first + len(heads)) if heads == tuple(range(first, first + len(heads))) else list(heads)
