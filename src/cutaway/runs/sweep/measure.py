"""From the stream after the last layer to the numbers of a metric, for what cells have changed of it.

Where a cell has changed nothing, its numbers are the clean run's. Logits are held for a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.model.transformer import Transformer
from cutaway.runs.lazy_logits import LazyLogits, NotComputed
from cutaway.runs.metrics import CustomMetric, Metric
from cutaway.runs.sweep.cells import Cell
from cutaway.runs.sweep.clean import Clean
from cutaway.runs.sweep.entering import Changed

PIECE = 2**23  # numbers in one piece of logits
KEPT = 2**25  # clean logits up to this many are kept rather than computed again


def positions_read(wanted: Tensor) -> Tensor | None:
    """The positions that a metric reads in some example, from `[batch, pos]`; None: all."""
    read_at = wanted.any(0).nonzero().flatten()
    return None if len(read_at) == wanted.shape[1] else read_at


class Measure:
    """A metric on one clean run: the clean run's values, and those of cells."""

    def __init__(self, model: Transformer, clean: Clean, metric: Metric, wanted: Tensor):
        self.model, self.clean, self.metric = model, clean, metric
        self.wanted = wanted  # [batch, pos], of the examples of this clean run
        self.read_at = positions_read(wanted)
        self.columns = metric.columns()
        self.kept: Tensor | None = None
        self.row: Tensor | None = None
        examples, positions = wanted.nonzero(as_tuple=True)
        width = model.cfg.d_vocab_out if self.columns is None else len(self.columns)
        if metric.compares and len(examples) * width <= KEPT:
            self.row = torch.zeros(wanted.shape, dtype=torch.long, device=wanted.device)
            self.row[examples, positions] = torch.arange(len(examples), device=wanted.device)
            self.kept = model.logits_of(clean.last[examples, positions], self.columns)
        values = self._measured(clean.last[examples, positions], examples, positions)
        self.grid = values.new_zeros(wanted.shape)
        self.grid[examples, positions] = values

    @property
    def clean_values(self) -> Tensor:
        """The metric of the clean run, `[batch]` or `[batch, pos]`."""
        return self.metric.combine(self.grid, self.wanted)

    def of_cells(self, cells: Sequence[Cell], changed: Sequence[tuple[Cell, Changed]]) -> Tensor:
        """The metric of each cell, `[cell, batch]` or `[cell, batch, pos]`, from what they have changed of the last stream."""
        grids = self.grid.expand(len(cells), *self.grid.shape).clone()
        row = {cell.number: at for at, cell in enumerate(cells)}
        pieces = [self._tokens(row[cell.number], one) for cell, one in changed]
        pieces = [piece for piece in pieces if len(piece[0])]
        if pieces:
            rows, examples, positions, resid = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            grids[rows, examples, positions] = self._measured(resid, examples, positions)
        return self.metric.combine(grids, self.wanted)

    def _tokens(self, cell: int, one: Changed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The wanted tokens of a cell: cell, example, position, and their stream."""
        examples, places = one.region.examples, one.region.places
        if examples is None:
            examples = torch.arange(len(one.data), device=places.device)
        rows = examples[:, None].expand(-1, len(places)).flatten()
        positions = places.expand(len(examples), -1).flatten()
        resid = one.data.flatten(0, 1)
        wanted = self.wanted[rows, positions]
        if not bool(wanted.all()):
            rows, positions, resid = rows[wanted], positions[wanted], resid[wanted]
        return torch.full_like(rows, cell), rows, positions, resid

    def _measured(self, resid: Tensor, examples: Tensor, positions: Tensor) -> Tensor:
        """The value at each token."""
        width = self.model.cfg.d_vocab_out if self.columns is None else len(self.columns)
        step = max(1, PIECE // max(width, self.model.cfg.d_model))
        values = []
        for at in range(0, max(len(resid), 1), step):
            rows, places = examples[at : at + step], positions[at : at + step]
            logits = self.model.logits_of(resid[at : at + step], self.columns)
            clean = None
            if self.metric.compares:
                clean = (
                    self.kept[self.row[rows, places]]
                    if self.kept is not None and self.row is not None
                    else self.model.logits_of(self.clean.last[rows, places], self.columns)
                )
            values.append(self.metric.of_tokens(logits, rows + self.clean.first, places, clean))
        return values[0] if len(values) == 1 else torch.cat(values)


@dataclass(frozen=True, eq=False)
class Opaque:
    """A metric that is just a function, on one clean run of all examples.

    `read_at` are the positions that it looked at in a trial on the clean run; None: all of them.
    """

    model: Transformer
    clean: Clean
    metric: CustomMetric
    value: Tensor
    read_at: Tensor | None

    @staticmethod
    def tried(model: Transformer, clean: Clean, metric: CustomMetric) -> Opaque:
        """Call the function on the clean run, and see which positions it looks at."""
        everything = Opaque(model, clean, metric, torch.empty(0), None)
        value, wanted = everything._of(clean.last)
        read_at = None
        if len(wanted) < clean.length:
            read_at = torch.tensor(sorted(wanted), dtype=torch.long, device=clean.tokens.device)
            read_at = read_at if len(read_at) else read_at.new_tensor([clean.length - 1])
        return Opaque(model, clean, metric, value, read_at)

    @property
    def clean_values(self) -> Tensor:
        return self.value

    def of_cells(self, cells: Sequence[Cell], changed: Sequence[tuple[Cell, Changed]]) -> Tensor:
        """The value of each cell, `[cell]` or `[cell, batch]`.

        Raises:
            NotComputed: the function looked at other positions than in its trial.
        """
        values, row = [self.value] * len(cells), {cell.number: at for at, cell in enumerate(cells)}
        base = self.clean.last
        base = base if self.read_at is None else base[:, self.read_at]
        for cell, one in changed:
            resid, region = base.clone(), one.region
            places = region.places if self.read_at is None else torch.searchsorted(self.read_at, region.places)
            rows = slice(None) if region.examples is None else region.examples[:, None]
            resid[rows, places] = one.data
            values[row[cell.number]] = self._of(resid)[0]
        return torch.stack(values)

    def _of(self, resid: Tensor) -> tuple[Tensor, set[int]]:
        """The function's value, from the stream after the last layer at the positions that it reads."""
        model, read_at = self.model, self.read_at

        def compute(positions: Tensor | None, columns: Tensor | None) -> Tensor:
            if read_at is None:
                return model.logits_of(resid if positions is None else resid[:, positions], columns)
            if positions is None or not bool(torch.isin(positions.to(read_at.device), read_at).all()):
                raise NotComputed
            return model.logits_of(resid[:, torch.searchsorted(read_at, positions.to(read_at.device))], columns)

        wanted: set[int] = set()
        sizes = (len(resid), self.clean.length, model.cfg.d_vocab_out)
        return self.metric(LazyLogits.make(compute, wanted, sizes, resid)), wanted
