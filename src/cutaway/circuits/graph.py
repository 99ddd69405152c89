"""The graph of a network: what writes to the residual stream, what reads from it, and the edges between them.

Writers are the embedding (of tokens; of positions where they are added), heads and MLPs; readers are each head's queries, keys
and values, MLPs, and the logits. There is an edge from each writer to everything that reads after it. Heads that share keys and
values in groups are told apart: an edge into the keys of one of them changes what that head alone reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import UnknownName
from cutaway.model import components
from cutaway.model.components import Component

READS = ("q", "k", "v")
Edges = Bool[Tensor, "writer reader"]


@dataclass(frozen=True)
class Graph:
    """Writers and readers of one network, numbered in the order in which they run."""

    cfg: HookedTransformerConfig

    @property
    def embeddings(self) -> int:
        """How many writers come before the first layer."""
        return 2 if self.cfg.positional_embedding_type == "standard" else 1

    @property
    def each(self) -> int:
        """How many writers a layer has."""
        return self.cfg.n_heads + (not self.cfg.attn_only)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """`embed`, `pos_embed`, `0.0`, …, `0.mlp`, `1.0`, …"""
        return tuple(map(str, self._writers))

    @cached_property
    def _writers(self) -> list[Component]:
        return [one for one in components.writers(self.cfg) if not one.constant]

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """`0.0.q`, `0.1.q`, …, `0.0.k`, …, `0.0.v`, …, `0.mlp`, `1.0.q`, …, `logits`"""
        return tuple(map(str, components.readers(self.cfg)))

    def heads(self, layer: int) -> slice:
        """The heads of a layer among the writers."""
        first = self.embeddings + layer * self.each
        return slice(first, first + self.cfg.n_heads)

    def mlp(self, layer: int) -> int:
        """The MLP of a layer among the writers."""
        return self.heads(layer).stop

    def reading(self, layer: int, reads: str) -> slice:
        """The queries, keys or values of a layer's heads among the readers."""
        heads = self.cfg.n_heads
        first = layer * (3 * heads + (not self.cfg.attn_only)) + READS.index(reads) * heads
        return slice(first, first + heads)

    def mlp_reading(self, layer: int) -> int:
        """The MLP of a layer among the readers."""
        return self.reading(layer, "v").stop

    def before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers come before what a layer's heads, or its MLP, read."""
        if layer == self.cfg.n_layers:
            return len(self.writers)
        column = self.mlp_reading(layer) if mlp else self.reading(layer, "q").start
        return int(self.mask[:, column].sum())

    @cached_property
    def mask(self) -> Edges:
        """Which edges there are."""
        return components.reach_mask(self.cfg, self._writers, components.readers(self.cfg))

    @property
    def size(self) -> int:
        """How many edges there are."""
        return int(self.mask.sum())

    def edge(self, writer: str, reader: str) -> tuple[int, int]:
        """The place of an edge.

        Raises:
            UnknownName: the network has no such writer, reader, or edge.
        """
        for name, names, what in ((writer, self.writers, "writer"), (reader, self.readers, "reader")):
            if name not in names:
                found = str(components.parse(name, self.cfg))  # or says how labels are written
                raise UnknownName(
                    f"{found} is no {what} of this graph, whose nodes are embeddings, heads and MLPs; there are "
                    f"{', '.join(names[:5])}, … {names[-1]}. edge_effects and edge_attribution take finer ones"
                )
        place = self.writers.index(writer), self.readers.index(reader)
        if not self.mask[place]:
            raise UnknownName(f"there is no edge {writer} → {reader}: {reader} reads before {writer} has written")
        return place

    def node_of(self, reader: str) -> str:
        """The writer that a reader belongs to; of the logits, themselves."""
        return reader.rpartition(".")[0] if reader[-1] in READS else reader

    def connected(self, edges: Edges) -> Edges:
        """The edges that lie on a way from an embedding to the logits: without the others a circuit computes the same."""
        kept = edges & self.mask
        reads = torch.tensor(
            [self.writers.index(node) if (node := self.node_of(name)) in self.writers else -1 for name in self.readers]
        )
        while True:
            fed = torch.zeros(len(self.writers), dtype=torch.bool)  # writers that something reaches
            fed[: self.embeddings] = True
            fed[reads[kept.any(0) & (reads >= 0)]] = True
            heard = kept.any(1)  # writers that somebody reads
            useful = torch.tensor([True if at < 0 else bool(heard[at]) for at in reads.tolist()])
            less = kept & fed[:, None] & useful[None]
            if torch.equal(less, kept):
                return kept
            kept = less
