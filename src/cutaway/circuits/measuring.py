"""Circuits run for real: their edges carry what is written now, all others what the ablation says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.circuits.components import Written, check, kept_of, run_mixed
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.pairs import ablated, as_pair, batches, constant_parts, first_differences, metric_on
from cutaway.errors import ShapeError
from cutaway.model.key_values import KeyValueCache
from cutaway.model.transformer import Transformer
from cutaway.runs.intervals import interval_of_ratio

KEPT = 2**28  # numbers of ablated runs that are kept between circuits; more are computed each time
ROOM = 2**25  # numbers that the parts of one batch may take


class CircuitRunner:
    """Runs circuits of one model on one set of prompts.

    Args:
        clean, corrupted: text, texts or tokens, of one shape; `corrupted` may be None where `ablation` needs none, and where
            `clean` is `Prompts` in pairs.
        metric: None: what `Prompts` say themselves.
        ablation: "resample", "mean", "mean over positions" or "zero".
        over: the prompts that means are over; None: the clean ones.

    Attributes:
        clean: the metric of the whole model, `[batch]`.
        ablated: the metric of the empty circuit, `[batch]`.
    """

    def __init__(
        self, model: Transformer, clean: Any, corrupted: Any = None, metric: Any = None, *, ablation: str = "resample",
        over: Any = None,
    ):  # fmt: skip
        check(model)
        metric = metric_on(model, metric, clean)
        self.model, self.metric, self.ablation = model, metric, ablation
        self.graph = Graph(model.cfg)
        self.tokens, self.source = as_pair(model, clean, corrupted, ablation)
        self.over = self.tokens if over is None else as_pair(model, over, None, "mean")[0]
        self.wanted = self.metric.wanted(*self.tokens.shape)
        self._constant = constant_parts(model, ablation, self.over, self.tokens.shape[1])
        source = self.source if self._constant is None else None
        self._start = int(first_differences(model, self.tokens, source, self.wanted).min())
        numbers = len(self.graph.writers) * (self.tokens.shape[1] - self._start) * model.cfg.d_model
        self._room, self._keep = max(1, ROOM // numbers), len(self.tokens) * numbers <= KEPT
        self._kept: list[tuple[slice, Written, KeyValueCache | None]] = []
        self._clean_logits: list[Tensor] = []
        with torch.no_grad():
            ends = [self._last(rows) for rows in batches(len(self.tokens), self._room)]
        self._clean_logits = [logits for _, logits in ends]
        self.clean = self._gathered(ends)
        self.ablated = self.values(torch.zeros_like(self.graph.mask))

    def _bases(self) -> Iterator[tuple[slice, Written, KeyValueCache | None]]:
        """For rows what ablated edges carry from the first position on where runs differ, and keys and values before it."""
        if self._kept:
            yield from self._kept
            return
        for rows in batches(len(self.tokens), self._room):
            kept = kept_of(self.model, self.tokens[rows, : self._start])
            tokens, source = (None if one is None else one[rows, self._start :] for one in (self.tokens, self.source))
            assert tokens is not None
            one = rows, ablated(self.model, tokens, source, self._constant, kept), kept
            if self._keep:
                self._kept.append(one)
            yield one

    def _last(self, rows: slice) -> tuple[slice, Tensor]:
        tokens = self.tokens[rows]
        stream = self.model.prepare(tokens, self.model.tokens_and_mask(tokens, None, None)[1])
        resid = self.model.run_blocks(*self.model.embed_tokens(tokens, stream))
        return rows, self._picked(rows, resid[:, self._start :])

    def _picked(self, rows: slice, resid: Tensor) -> Float[Tensor, "token column"]:
        """The logits that the metric reads, from the stream after the last layer, from the first position on."""
        at, places = self.wanted[rows].nonzero(as_tuple=True)
        return self.model.logits_of(resid[at, places - self._start], self.metric.columns())

    def _gathered(self, found: list[tuple[slice, Tensor]]) -> Float[Tensor, "batch"]:
        values = []
        for number, (rows, logits) in enumerate(found):
            at, places = self.wanted[rows].nonzero(as_tuple=True)
            clean = self._clean_logits[number] if self.metric.compares else None
            one = self.metric.of_tokens(logits, at + rows.start, places, clean)
            values.append(self.metric.by_example(one, self.wanted[rows]))
        return torch.cat(values).double().cpu()

    @torch.no_grad()
    def values(self, edges: Edges) -> Float[Tensor, "batch"]:
        """The metric of each example, of the circuit of these edges."""
        used = self.graph.connected(edges) if self.ablation == "resample" else edges
        found = []
        for rows, base, kept in self._bases():
            resid = run_mixed(self.model, self.tokens[rows, self._start :], used, base, kept)
            found.append((rows, self._picked(rows, resid)))
        return self._gathered(found)

    def recovered(self, edges: Edges) -> float:
        """How much of the metric's difference the circuit recovers: 0 = all edges ablated, 1 = the whole model.

        Raises:
            ShapeError: there is no difference.
        """
        return self.share(self.values(edges))

    def share(self, values: Float[Tensor, "batch"]) -> float:
        """The same, of values."""
        whole, none = float(self.clean.nanmean()), float(self.ablated.nanmean())
        if abs(whole - none) <= 1e-6 * max(1.0, abs(whole)):
            raise ShapeError(
                f"the whole model and all edges ablated have the same {self.metric.name}, {whole:g}; there is nothing to recover"
            )
        return (float(values.nanmean()) - none) / (whole - none)

    @property
    def sign(self) -> int:
        """1 where the whole model has the larger metric, as of a right answer; -1 where it has the smaller, as a loss."""
        return 1 if float(self.clean.nanmean()) >= float(self.ablated.nanmean()) else -1

    def interval(self, values: Float[Tensor, "batch"]) -> tuple[float, float]:
        """The 95% interval of that share over prompts, both of its parts uncertain (Fieller); NaN where nothing can be said."""
        low, high = interval_of_ratio(values - self.ablated, self.clean - self.ablated).tolist()
        return low, high


@torch.no_grad()
def run_circuit(
    model: Transformer, clean: Any, corrupted: Any, circuit: Edges, *, ablation: str = "resample", over: Any = None
) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of the clean prompts where only the circuit's edges carry what is written now, all others the ablation.

    Args:
        ablation: what they carry: "resample" (what is written in the corrupted run), "mean" or "mean over positions" (over the
            prompts `over`, or the clean ones), or "zero".

    Raises:
        ShapeError: prompts that do not align.
    """
    check(model)
    tokens, source = as_pair(model, clean, corrupted, ablation)
    means_of = tokens if over is None else as_pair(model, over, None, "mean")[0]
    base = ablated(model, tokens, source, constant_parts(model, ablation, means_of, tokens.shape[1]))
    return model.logits_of(run_mixed(model, tokens, circuit, base))
