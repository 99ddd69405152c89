"""The cells of a sweep: each cell's edits bound to a network, where it leaves the clean run, and which cells run together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.model import sites
from cutaway.model.origins import Origin
from cutaway.model.steps import FIRST, LAST, PATTERN, RESULT, SCORES, BlockProgram, Z
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound, Change, Edit, Put, Random, Zero
from cutaway.runs.sweep.options import Sweep
from cutaway.runs.sweep.regions import BY_HEAD, Region


def short(site: str) -> str:
    """The rest of a site's name after its layer."""
    return site.split(".", 2)[2] if site.startswith("blocks.") else site


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a sweep: its number, its edits, and where it leaves the clean run.

    Args:
        layer: the first layer that an edit reaches; -1 before the embedding is done, `n_layers` after the last.
        start: the first position that an edit can reach.
        way: "join" (one edit, which enters where it is made), "packed" (several edits, made as the cell passes them), or
            "alone" (a batch of its own, at full length).
    """

    number: int
    bounds: tuple[Bound, ...]
    layer: int
    start: int
    way: str

    def declared(self, first: int, last: int, device: torch.device, *, apart: bool = True) -> dict[tuple[int, str], Region]:
        """(layer, value) → what the edits can change there of the examples `first` to `last`.

        Args:
            apart: whether the pattern of some heads can be computed alone.
        """
        found: dict[tuple[int, str], Region] = {}
        alone = len(self.bounds) == 1
        for bound in self.bounds:
            local = bound.local(first, last)
            if local is None or local.layer is None or (alone and (is_freeze(local) or local.first == local.length)):
                continue
            name, places = short(local.site), torch.arange(self.start, local.length, device=device)
            some, positions = local.reach()
            examples = heads = None
            if alone and positions is not None:
                places = torch.tensor(sorted(positions), device=device)
            if alone and name != SCORES:
                examples = None if some is None else torch.tensor(some, device=device)
                heads = (local.chosen[-1] if name == "mlp.hook_post" else local.heads) if name in BY_HEAD else None
                heads = None if name == PATTERN and not apart else heads
            rows = last - first if examples is None else len(examples)
            found[local.layer, name] = Region.of_places(examples, rows, places, local.length, heads)
        return found

    @property
    def enters(self) -> tuple[int, frozenset[str], bool]:
        """The first layer, the values that are edited there, and whether some heads or neurons of them are by themselves."""
        names = frozenset(short(bound.site) for bound in self.bounds if bound.layer == self.layer)
        one = self.bounds[0]
        return self.layer, names, self.way == "join" and (one.heads is not None or one.chosen[-1] is not None or RESULT in names)


def bind(task: Sweep, means: dict[str, Tensor] | None = None) -> list[Cell]:
    """Every cell with its edits bound to the network, and the way in which it will run.

    Args:
        means: over the task's own examples, by site, where edits take them.
    """
    model, cfg = task.model, task.model.cfg
    alone = task.options.skip == "layers" or any(point.written for point in model.hook_points())
    from_tokens = model.hook_tokens.written  # what is attached there follows each run from its beginning
    known: dict[object, Any] = {}
    writes = [model.program_of(layer).writes for layer in range(cfg.n_layers)]
    table, out = sites.table(cfg), []
    for number, edits in enumerate(task.cells.edits):
        bounds = tuple(_settled(edit, means).bind(cfg, task.batch, task.length, table) for edit in edits)
        if not alone:
            bounds = tuple(_by_input(bound, cfg, table) for bound in bounds)
        layer = -1 if from_tokens else min(_layer(bound.site, cfg) for bound in bounds)
        way = "alone" if alone or not _in_blocks(writes, bounds) else "join" if len(bounds) == 1 else "packed"
        if way == "join" and short(bounds[0].site) != SCORES:
            bounds[0].same = _unchanged(task, edits[0].change, bounds[0], known)
        causal = cfg.attention_dir == "causal" and way != "alone"
        out.append(Cell(number, bounds, layer, min(map(_start, bounds)) if causal else 0, way))
    return out


def _in_blocks(writes: Sequence[Collection[str]], bounds: Sequence[Bound]) -> bool:
    """Whether all edits are declared, and at values of the blocks' programs (or at pattern, scores, per-head results).

    `writes`: the values of each layer's program, looked up once for all cells.
    """
    for bound in bounds:
        name = short(bound.site)
        if not bound.change.declared or bound.layer is None:
            return False
        between = name in (SCORES, PATTERN) or (name == RESULT and len(bounds) == 1)
        if not between and name not in writes[bound.layer]:
            return False
    return True


def _unchanged(task: Sweep, change: Change, bound: Bound, known: dict[object, Any]) -> Tensor | None:
    """For each example, up to which position the values that an edit puts in are provably the run's own; None: unknown.

    They are up to the first token that differs from those of their run. `known`: what was found for earlier edits.
    """
    plain = change.change if isinstance(change, Random) else change
    if not isinstance(plain, Put) or bound.position_axis is None:
        return None
    origin = plain.origin(bound.site)
    if plain.values is None and plain.mean_over == ("batch",):
        origin = known.get("mean") or Origin.of(task.model, task.tokens, task.mask).mean()
        known["mean"] = origin
    if origin is None:
        return None
    if id(origin) not in known:
        shared = origin.shared_with(task.model, task.tokens, task.mask)
        known[id(origin)] = origin, None if shared is None else shared.cpu()  # read once for each cell
    found: Tensor | None = known[id(origin)][1]
    return found


def _settled(edit: Edit, means: dict[str, Tensor] | None) -> Edit:
    """The edit with the means of the sweep's own examples, where it asks for them."""
    change = edit.change
    if means is None or not isinstance(change, Put) or change.values is not None or not change.mean_over:
        return edit
    rest = {name: getattr(edit, name) for name in ("positions", "heads", "neurons", "examples", "sources")}
    return Put(means, "mean").at(edit.site, **rest)


def _by_input(bound: Bound, cfg: HookedTransformerConfig, table: dict[str, tuple[str, ...]]) -> Bound:
    """Zeroing a head's result is zeroing its z, which needs no per-head results."""
    if short(bound.site) != "attn.hook_result" or not isinstance(bound.change, Zero):
        return bound
    edit = bound.edit
    site = bound.site.replace("hook_result", "hook_z")
    return edit.change.at(site, positions=edit.positions, heads=edit.heads, examples=edit.examples).bind(
        cfg, bound.batch, bound.length, table
    )


def _layer(site: str, cfg: HookedTransformerConfig) -> int:
    if site.startswith("blocks."):
        return int(site.split(".")[1])
    return cfg.n_layers if site.startswith("ln_final.") else -1


def _start(bound: Bound) -> int:
    """The first position that an edit can change. A freeze changes nothing on its own, so it counts as the last position."""
    return bound.length - 1 if is_freeze(bound) else bound.first


def is_freeze(bound: Bound) -> bool:
    """Whether an edit holds the clean run's own values, and so changes nothing by itself."""
    return isinstance(bound.change, Put) and bound.change.values is None and not bound.change.mean_over


def _needed(program: BlockProgram, names: frozenset[str], apart: bool) -> list[str]:
    """What cells that enter a layer at these values need of the clean run there: these, and what they read unchanged."""
    reached: set[str] = set()
    kept: set[str] = set()
    for step in program.steps:
        if reached & set(step.reads) or names & set(step.passes):
            kept |= set(step.reads) - reached
            kept |= set(step.writes) if apart and (step.weights is not None or Z in step.writes) else set()
            reached |= set(step.writes)
        kept |= names & set(step.writes) - reached
        reached |= names & set(step.writes)
    return sorted(name for name in kept - {FIRST, LAST, *program.writer(Z).reads} if "hook_" in name)


def kept_sites(model: Transformer, cells: Sequence[Cell]) -> list[str]:
    """The sites that the clean run must keep for these cells."""
    names: dict[str, None] = {}
    for layer, edited, apart in dict.fromkeys(cell.enters for cell in cells if cell.way != "alone"):
        names |= dict.fromkeys(f"blocks.{layer}.{name}" for name in _needed(model.program_of(layer), edited, apart))
    for cell in cells:
        if cell.way != "join":
            for bound in cell.bounds:
                if isinstance(bound.change, Put) and bound.source is None:
                    names[bound.site] = None
    return list(names)
