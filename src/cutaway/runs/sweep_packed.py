"""Many cells in one pass over the layers: as it reaches a layer, the cells that are edited there join.

The running batch is packed: rows of unequal length, one below the other, as a single row of tokens. All matrix products
work on all of them at once; attention goes group by group of rows that begin at the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.model.positions import offset_positions
from cutaway.model.steps import LAST, MID
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Bound
from cutaway.runs.sweep_clean import Clean, Group, Packed, rows_of
from cutaway.runs.sweep_ends import absorbs, few, last_layer, through_attention
from cutaway.runs.sweep_join import Entry, Part, as_slice, enter, short

# Sites where rows of a packed run can be edited while they run.
RUNNING = frozenset((
    "hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores",
    "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_mid",
    "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of a sweep: its number, its edits, and where it leaves the clean run.

    Args:
        layer: the first layer that an edit reaches; -1 before the embedding is done, `n_layers` after the last.
        start: the first position that an edit can reach.
        way: "join" (one edit, entering in the middle of its layer), "packed" (its edits are made while it runs among
            others), or "alone" (a batch of its own, at full length).
    """

    number: int
    bounds: tuple[Bound, ...]
    layer: int
    start: int
    way: str


@dataclass(frozen=True, eq=False)
class Run:
    """Rows of one cell in the running batch: some examples, from a position on."""

    cell: Cell
    examples: Tensor | None
    start: int
    rows: int


@dataclass(frozen=True, eq=False)
class Ended:
    """What a cell has changed of the stream after the last layer, where the metric reads it."""

    cell: Cell
    part: Part


def run_packed(model: Transformer, clean: Clean, cells: Sequence[Cell], asked: Tensor | None) -> list[Ended]:
    """Run cells from where they leave the clean run to the end of the last layer.

    Args:
        asked: the positions that the metric reads, ascending; None: all.
    """
    n_layers = model.cfg.n_layers
    entering: dict[int, list[Cell]] = {}
    for cell in cells:
        entering.setdefault(cell.layer, []).append(cell)
    batch = _Batch(model, clean, asked)
    ended: list[Ended] = []
    for layer in range(min(entering), n_layers):
        before: list[tuple[Cell, Part]] = []
        middle: list[tuple[Cell, Part]] = []
        after: list[tuple[Cell, Part]] = []
        for cell in entering.get(layer, []):
            if cell.way == "packed":
                batch.add_from_start(cell, layer)
                continue
            local = cell.bounds[0].local(clean.first, clean.first + clean.batch)
            entry: Entry | None = None if local is None else enter(model, clean, local, asked)
            if entry is None:
                continue
            if entry.stage == "pre" and few(model, clean, entry.part) and not model.cfg.parallel_attn_mlp:
                before.append((cell, entry.part))
            elif entry.stage == "pre":
                batch.add(cell, entry.part, layer)
            else:
                (middle if entry.stage == "mid" else after).append((cell, entry.part))
        batch.run_layer(layer)
        attended = through_attention(model, clean, layer, before, asked if layer == n_layers - 1 else None)
        (after if model.cfg.attn_only else middle).extend(attended)
        after += _through_mlp(model, clean, layer, middle)
        for cell, part in after:
            if layer == n_layers - 1:
                part_or_none = part.only(asked)
                ended += [Ended(cell, part_or_none)] if part_or_none is not None else []
            else:
                batch.add(cell, part, layer + 1)
    return ended + batch.ended()


def _through_mlp(model: Transformer, clean: Clean, layer: int, middle: list[tuple[Cell, Part]]) -> list[tuple[Cell, Part]]:
    """From the middle of a layer to its end, all cells in one product."""
    if not middle:
        return []
    values = [part.value for _, part in middle]
    packed = values[0].flatten(0, 1) if len(values) == 1 else torch.cat([value.flatten(0, 1) for value in values])
    sizes = [value.shape[0] * value.shape[1] for value in values]
    done = model.blocks[layer].compute(LAST, {MID: packed[None]}, clean.stream)[0].split(sizes)
    return [(cell, part.with_value(one.view(part.value.shape))) for (cell, part), one in zip(middle, done, strict=True)]


class _Batch:
    """The running batch: rows sorted by the position where they begin, and their tokens."""

    def __init__(self, model: Transformer, clean: Clean, asked: Tensor | None):
        self.model, self.clean, self.asked = model, clean, asked
        self.runs: list[Run] = []
        self.tokens: Tensor | None = None  # [token, d_model]
        self.new: list[tuple[Run, Tensor]] = []
        self.packed: Packed | None = None
        self.narrowed = False

    def add(self, cell: Cell, part: Part, layer: int) -> None:
        """A cell joins before `layer`: the clean run's stream there, with what the cell has changed."""
        clean = self.clean
        start = int(part.places[0]) if self.model.cfg.attention_dir == "causal" else 0
        if not self._anything_read(start):
            return
        whole = clean.resid[layer]
        if len(part.places) == clean.length:
            resid = part.value
        else:
            resid = whole[:, start:].clone() if part.examples is None else whole[part.examples][:, start:]
            resid[:, as_slice(part.places - start)] = part.value
        self.new.append((Run(cell, part.examples, start, len(resid)), resid.flatten(0, 1)))

    def add_from_start(self, cell: Cell, layer: int) -> None:
        """A cell whose edits are made while it runs joins before its first layer, unchanged as yet."""
        start = cell.start if self.model.cfg.attention_dir == "causal" else 0
        if self._anything_read(start):
            resid = self.clean.resid[layer][:, start:]
            self.new.append((Run(cell, None, start, len(resid)), resid.flatten(0, 1)))

    def _anything_read(self, start: int) -> bool:
        return self.asked is None or start <= int(self.asked[-1]) or self.model.cfg.attention_dir != "causal"

    def run_layer(self, layer: int) -> None:
        """Take in what joined, and run one layer."""
        self._take_in()
        if self.tokens is None:
            return
        running = _edits_of(self.runs, layer)
        last = layer == self.model.cfg.n_layers - 1
        asked = self.asked if last and not running and self._narrow() else None
        if self.packed is None or asked is not None:
            self.packed = self._stream(asked)
        self.narrowed = asked is not None
        if asked is not None and absorbs(self.model, layer, len(asked), self.clean.length):
            self.tokens = last_layer(self.model, self.packed, self.tokens, layer)
            return
        with _editing(self.model, self.clean, self.runs, self.packed, running):
            self.tokens = self.model.run_blocks(self.tokens[None], self.packed, layer, layer + 1)[0]

    def _narrow(self) -> bool:
        """Whether attention can answer only the asked queries: ALiBi counts back from the last position."""
        return self.model.cfg.positional_embedding_type != "alibi"

    def _take_in(self) -> None:
        if not self.new:
            return
        pieces = list(zip(self.runs, self._split(), strict=True)) + self.new
        pieces.sort(key=lambda piece: piece[0].start)
        self.runs = [run for run, _ in pieces]
        self.tokens = pieces[0][1] if len(pieces) == 1 else torch.cat([tokens for _, tokens in pieces])
        self.new, self.packed = [], None

    def _split(self) -> Sequence[Tensor]:
        if self.tokens is None:
            return []
        return self.tokens.split([run.rows * (self.clean.length - run.start) for run in self.runs])

    def _stream(self, asked: Tensor | None) -> Packed:
        """How the rows attend."""
        groups: list[Group] = []
        begin = 0
        for runs in _by_start(self.runs):
            start, rows = runs[0].start, sum(run.rows for run in runs)
            length = self.clean.length - start
            examples = None
            if any(run.examples is not None for run in runs):
                every = torch.arange(self.clean.batch, device=self.clean.tokens.device)
                examples = torch.cat([every if run.examples is None else run.examples for run in runs])
            at = None if asked is None else asked[asked >= start]
            if at is not None and len(at) == length:
                at = None
            stream = rows_of(self.clean, examples, start=start, at=at)
            if examples is None and stream.padding is not None:
                stream = replace(stream, padding=stream.padding.repeat(len(runs), 1))
            groups.append(Group(begin, rows, start, length, examples, len(runs), stream, None if at is None else at - start))
            begin += rows * length
        return self._placed(tuple(groups))

    def _placed(self, groups: tuple[Group, ...]) -> Packed:
        """The stream of these groups, with what each token needs to know of its position."""
        clean, cfg = self.clean, self.model.cfg
        positions = shortformer = token_asked = None
        if cfg.positional_embedding_type == "rotary":
            positions = torch.cat([_flat_positions(group) for group in groups])[None]
        if clean.stream.shortformer is not None:
            shortformer = torch.cat([_flat_rows(clean.stream.shortformer, group) for group in groups])[None]
        if any(group.asked is not None for group in groups):
            token_asked = torch.cat([_flat_asked(group, clean.tokens.device) for group in groups])
        return Packed(
            shortformer=shortformer, clean=clean, groups=groups, token_positions=positions, token_asked=token_asked,
            length=clean.length,
        )  # fmt: skip

    def ended(self) -> list[Ended]:
        """What every cell has changed of the stream after the last layer, at the asked positions."""
        self._take_in()
        if self.tokens is None:
            return []
        out: list[Ended] = []
        length, device = self.clean.length, self.clean.tokens.device
        at = 0
        for run in self.runs:
            places = torch.arange(run.start, length, device=device)
            if self.narrowed and self.asked is not None:
                places = self.asked[self.asked >= run.start]
            value = self.tokens[at : at + run.rows * len(places)].unflatten(0, (run.rows, len(places)))
            at += run.rows * len(places)
            part = Part(run.examples, places, value).only(self.asked)
            out += [Ended(run.cell, part)] if part is not None else []
        return out


def _by_start(runs: list[Run]) -> Iterator[list[Run]]:
    """Runs that begin at the same position, together."""
    at = 0
    while at < len(runs):
        end = at
        while end < len(runs) and runs[end].start == runs[at].start:
            end += 1
        yield runs[at:end]
        at = end


def _flat_positions(group: Group) -> Tensor:
    own = group.stream.padding
    if own is None:
        device = None if group.asked is None else group.asked.device
        return torch.arange(group.start, group.start + group.length, device=device).repeat(group.rows)
    return offset_positions(own)[:, group.start :].flatten()


def _flat_rows(x: Tensor, group: Group) -> Tensor:
    """What belongs to each token of a group, of a tensor `[batch, pos, …]` of the clean run."""
    part = x[:, group.start :]
    part = part[group.examples] if group.examples is not None else part.repeat(group.times, *[1] * (x.ndim - 1))
    return part.flatten(0, 1)


def _flat_asked(group: Group, device: torch.device) -> Tensor:
    own = torch.arange(group.length, device=device) if group.asked is None else group.asked
    rows = torch.arange(group.rows, device=device)[:, None] * group.length
    return (group.begin + rows + own).flatten()


# Edits of cells while they run among others.


def _edits_of(runs: Sequence[Run], layer: int) -> dict[str, list[tuple[int, Bound]]]:
    """Site → which runs (by number) are edited there in this layer, and how."""
    found: dict[str, list[tuple[int, Bound]]] = {}
    for number, run in enumerate(runs):
        if run.cell.way == "packed":
            for bound in run.cell.bounds:
                if bound.layer == layer:
                    found.setdefault(bound.site, []).append((number, bound))
    return found


@contextmanager
def _editing(
    model: Transformer, clean: Clean, runs: Sequence[Run], packed: Packed, edits: dict[str, list[tuple[int, Bound]]]
) -> Iterator[None]:
    """Attach the edits of some runs for one layer."""
    if not edits:
        yield
        return
    begins, at = [], 0
    for run in runs:
        begins.append(at)
        at += run.rows * (clean.length - run.start)
    hooks = [(site, _editor(clean, runs, begins, packed, some)) for site, some in edits.items()]
    with model.hooks(hooks):
        model.runs += 1
        yield


def _editor(
    clean: Clean, runs: Sequence[Run], begins: list[int], packed: Packed, edits: list[tuple[int, Bound]]
) -> Callable[..., Tensor]:
    """A hook that edits each run's own rows."""

    def edit(x: Tensor, hook: Any) -> Tensor:
        by_group = short(str(hook.name)) in ("attn.hook_pattern", "attn.hook_attn_scores")
        for number, bound in edits:
            run = runs[number]
            local = bound.local(clean.first, clean.first + clean.batch)
            if local is None:
                continue
            if by_group:
                group = packed.groups[packed.now[0]]
                row = (begins[number] - group.begin) // group.length
                if run.start != group.start:
                    continue
                own = x[row : row + run.rows]
            else:
                length = clean.length - run.start
                own = x[0, begins[number] : begins[number] + run.rows * length].unflatten(0, (run.rows, length))
            local.write(own, run.start, clean.store.get(bound.site))
        return x

    return edit
