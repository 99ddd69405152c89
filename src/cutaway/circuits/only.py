"""Only this circuit, as edits of an ordinary run: each reader reads the ablated stream plus what the circuit's edges carry.

The network itself runs: queries, keys and values of each head, and what MLPs and logits read, are exchanged at their sites, and
what each node writes is noted after all other edits of its site. So other edits work within the circuit: one at a node (z, a
pattern, a neuron) changes what this node writes and travels along the circuit's edges; one to the stream itself (`resid_pre`,
`attn_out`; a steering vector) belongs to no edge and reaches everything that reads later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutaway.circuits.components import (
    Resid,
    beside_heads,
    check,
    project_by_head,
    read_by,
    results_write,
)
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.pairs import ablated, as_pair, batches, constant_parts
from cutaway.errors import ConfigError, ShapeError
from cutaway.model.components import group_size
from cutaway.model.hook_points import written as is_written
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Change, Edit

ROOM = 2**25  # numbers that the parts of one batch of ablated runs may take
FIRST, LAST = -1, 1  # before and after all other edits of a site
BEFORE_HEADS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "ln1.hook_scale", "ln1.hook_normalized")


@dataclass(frozen=True, eq=False)
class OnlyCircuit:
    """What `Circuit.only` makes: edits that leave of a network only a circuit.

    Args:
        edges: the circuit's, `[writer, reader]`.
        ablation: what all other edges carry.
        clean, corrupted: prompts and their counterparts, `[prompt, pos]`, for "resample". A row of a run that begins as one of
            the prompts has that one's counterpart, and goes on in it as the row does.
        over: the prompts that means are over.
        check: stops where the circuit is one of another model.
    """

    graph: Graph
    edges: Edges
    ablation: str
    clean: Tensor | None
    corrupted: Tensor | None
    over: Tensor | None
    check: Callable[[Transformer], None]

    def edits_for(self, model: Transformer) -> list[Edit]:
        """The edits, for one run at a time.

        Raises:
            ShapeError: another model, or prompts that do not align with their counterparts, row by row.
        """
        self.check(model)
        check(model)
        if self.ablation == "resample":
            as_pair(model, self.clean, self.corrupted)
        return _Run(model, self).edits()


@dataclass(frozen=True, eq=False)
class _Step(Change):
    """A function of a whole activation, which may give keys and values to each head of a group."""

    function: Callable[[Tensor], Tensor | None]
    order: int = FIRST
    word = "circuit"
    declared = False

    def new(self, x: Tensor, value: Any) -> Tensor:
        out = self.function(x)
        return x if out is None else out


@dataclass(frozen=True, eq=False)
class _Base:
    """What ablated edges carry at the columns of a step: what each writer of the circuit adds, and the streams."""

    parts: dict[int, Tensor]
    streams: list[Resid]

    @classmethod
    def of(cls, model: Transformer, what: OnlyCircuit, tokens: Tensor, start: int) -> _Base:
        """For rows `[batch, column]` whose columns before `start` have run already."""
        graph = what.graph
        used = what.edges.any(1).nonzero()[:, 0].tolist()
        room = max(1, ROOM // (len(graph.writers) * tokens.shape[1] * model.cfg.d_model))
        found: list[Tensor] = []
        streams: list[list[Tensor]] = []
        source = _counterparts(what, tokens) if what.ablation == "resample" else None
        constant = constant_parts(model, what.ablation, tokens if what.over is None else what.over, tokens.shape[1])
        for rows in batches(len(tokens), room):
            one = ablated(model, tokens[rows], None if source is None else source[rows], constant)
            streams.append([each[:, start:] for each in one.streams])
            found.append(one.parts[used][:, :, start:])
        return cls(dict(zip(used, torch.cat(found, 1), strict=True)), [torch.cat(each) for each in zip(*streams, strict=True)])


def _counterparts(what: OnlyCircuit, tokens: Tensor) -> Tensor:
    """For each row the counterpart of the prompt that it begins with, and then the row's own tokens."""
    assert what.clean is not None and what.corrupted is not None
    clean, corrupted = what.clean.to(tokens.device), what.corrupted.to(tokens.device)
    length = clean.shape[1]
    if tokens.shape[1] < length:
        raise ShapeError(f"the counterparts of this circuit have {length} tokens, and the run {tokens.shape[1]}")
    if len(tokens) == len(clean) and torch.equal(tokens[:, :length], clean):
        return torch.cat([corrupted, tokens[:, length:]], 1)
    same = (tokens[:, None, :length] == clean[None]).all(-1)
    unknown = (~same.any(1)).nonzero()[:, 0].tolist()
    if unknown:
        raise ShapeError(
            f"row {unknown[0]} of the run is none of the {len(clean)} prompts whose counterparts this circuit resamples from; "
            "give yours with circuit.only(clean, corrupted), or ablate otherwise with circuit.only(ablation='zero')"
        )
    return torch.cat([corrupted[same.int().argmax(1)], tokens[:, length:]], 1)


@dataclass(eq=False)
class _Run:
    """Follows a run from its tokens to the last stream. What it holds is that of the run, or the step, under way."""

    model: Transformer
    what: OnlyCircuit
    tokens: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))  # all columns so far
    base: _Base = field(default_factory=lambda: _Base({}, []))
    now: dict[int, Tensor] = field(default_factory=dict)  # writer → what it adds beyond the base
    seen: Any = None  # the stream of the run itself: all that is written
    heads: Any = None  # what a layer's heads and their bias have written
    added: Any = 0  # what edits of the stream have added to it
    added_before: Any = 0  # the same before the layer
    positions: Tensor | None = None

    @property
    def graph(self) -> Graph:
        """The network's graph."""
        return self.what.graph

    def edits(self) -> list[Edit]:
        """All edits, in the order of the run."""
        cfg, found = self.model.cfg, []

        def at(site: str, function: Callable[[Tensor], Tensor | None], order: int) -> None:
            found.append(_Step(function, order).at(site))

        at("hook_tokens", self._begin, LAST)
        at("hook_embed", self._embedded, LAST)
        if self.model.has_positions:
            at("hook_pos_embed", self._positioned, LAST)
        for layer in range(cfg.n_layers):
            block = f"blocks.{layer}."
            at(f"{block}hook_resid_pre", partial(self._stream, layer), LAST)
            for which in "qkv":
                at(f"{block}attn.hook_{which}", partial(self._projected, layer, which), FIRST)
            at(f"{block}attn.hook_result", partial(self._results, layer), LAST)
            at(f"{block}hook_attn_out", self._attn_out, LAST)
            if not cfg.attn_only:
                at(f"{block}hook_mlp_in", partial(self._mlp_in, layer), FIRST)
                at(f"{block}hook_mlp_out", partial(self._mlp_out, layer), LAST)
        at(f"blocks.{cfg.n_layers - 1}.hook_resid_post", self._last, FIRST)
        return found

    # The beginning.

    def _begin(self, tokens: Tensor) -> None:
        start = self.model.current.start
        self.tokens = tokens.clone() if not start else torch.cat([self.tokens[:, :start], tokens], 1)
        with self.model.aside(), torch.no_grad():
            self.base = _Base.of(self.model, self.what, self.tokens, start)
        self.now, self.positions = {}, None

    def _embedded(self, x: Tensor) -> None:
        self._wrote(0, x)
        self.seen, self.added = x, torch.zeros_like(x)

    def _positioned(self, x: Tensor) -> None:
        if self.model.cfg.positional_embedding_type == "shortformer":
            self.positions = x
            return
        self._wrote(1, x)
        self.seen = self.seen + x

    # What nodes write, and what edits add to the stream.

    def _wrote(self, writer: int, x: Tensor) -> None:
        if writer in self.base.parts:
            self.now[writer] = x - self.base.parts[writer]

    def _stream(self, layer: int, x: Tensor) -> None:
        self.added = self.added_before = self.added + (x - self.seen)
        self.seen = x

    def _results(self, layer: int, x: Tensor) -> None:
        block = self.model.blocks[layer]
        with self.model.aside():
            parts = results_write(block, x)
        for head in range(self.model.cfg.n_heads):
            self._wrote(self.graph.heads(layer).start + head, parts[:, :, head])
        whole = x.sum(-2) + block.attn.b_O if parts is x else parts.sum(-2) + beside_heads(block)
        self.heads = whole

    def _attn_out(self, x: Tensor) -> None:
        self.added, self.seen = self.added + (x - self.heads), self.seen + x

    def _mlp_out(self, layer: int, x: Tensor) -> None:
        self._wrote(self.graph.mlp(layer), x)
        self.seen = self.seen + x

    # What readers read.

    def _carried(self, columns: slice | int, done: int) -> Any:
        edges = self.what.edges[:done, columns]
        rows = edges.reshape(done, -1).any(1).nonzero()[:, 0].tolist()
        if not rows:
            return 0.0
        change = torch.stack([self.now[row] for row in rows])
        return torch.einsum("w...,wbpm->...bpm", edges[rows].to(change), change)

    def _projected(self, layer: int, which: str, x: Tensor) -> Tensor:
        self._nothing_lost(layer)
        block, graph = self.model.blocks[layer], self.graph
        carried = self._carried(graph.reading(layer, which), graph.before(layer))
        read = (self.base.streams[2 * layer] + self.added).unsqueeze(2)
        read = read + carried.movedim(0, 2) if isinstance(carried, Tensor) else read.expand(-1, -1, self.model.cfg.n_heads, -1)
        with self.model.aside():
            return project_by_head(block, which, read_by(block, which, read, Stream(shortformer=self.positions)))

    def _mlp_in(self, layer: int, x: Tensor) -> Tensor:
        if self.model.cfg.has_resid_mid:
            self._stream(layer, x)
        graph = self.graph
        carried = self._carried(graph.mlp_reading(layer), graph.before(layer, mlp=True))
        out: Tensor = self.base.streams[2 * layer + 1] + self.added_before + carried
        return out

    def _last(self, x: Tensor) -> Tensor:
        graph = self.graph
        out: Tensor = self.base.streams[-1] + self.added + self._carried(len(graph.readers) - 1, len(graph.writers))
        return out

    def _nothing_lost(self, layer: int) -> None:
        """Refuse edits that the exchanged queries, keys and values would hide."""
        block = self.model.blocks[layer]
        if _others(block.attn.hook_q, FIRST):
            raise ConfigError("a run has two circuits, of which only one can hold; join their edges")
        lost = [name for name in BEFORE_HEADS if (point := _point(block, name)) is not None and is_written(point)]
        shared = ("attn.hook_k", "attn.hook_v") if group_size(self.model.cfg) > 1 else ()
        lost += [name for name in shared if _others(_point(block, name))]
        lost += ["attn.hook_rot_k"] if shared and (point := _point(block, "attn.hook_rot_k")) and is_written(point) else []
        if lost:
            raise ConfigError(
                f"an edit at 'blocks.{layer}.{lost[0]}' has no effect within a circuit, whose heads read streams (and keys and "
                "values) of their own; edit queries, patterns, z or results, or the stream"
            )


def _point(block: Any, name: str) -> Any:
    for part in name.split("."):
        block = getattr(block, part, None)
    return block


def _others(point: Any, order: int = 0) -> bool:
    """Whether somebody else changes what passes a point (with `FIRST`: before all others)."""
    writers = [one for one in point.fwd_hooks if not one.reads and getattr(one.function, "order", 0) <= order]
    return len(writers) > 1
