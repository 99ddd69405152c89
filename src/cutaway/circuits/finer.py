"""Edges out of components that are no nodes of a graph: neurons, whole attention layers, output biases.

What such a component adds is a share of what a node adds, or a sum of nodes, so its edges carry it as theirs do: scores of the
neurons of an MLP sum to the score of the MLP. A bias adds the same in every run. In place of another run's, or of a mean, it
changes exactly nothing; ablated by zero, its reader reads the stream without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from cutaway.circuits.components import Parts
from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.pairs import constant_parts
from cutaway.errors import UnknownName
from cutaway.model import components
from cutaway.model.components import Component
from cutaway.model.key_values import KeyValueCache
from cutaway.model.transformer import Transformer
from cutaway.runs import decompose


@dataclass(frozen=True, eq=False)
class Finer:
    """Components that write, in the order in which they do, and what their edges carry when ablated.

    Args:
        constant: what they carry by zero or by a mean, `[writer, pos, d_model]`; None: what they add in another run.
    """

    model: Transformer
    components: Sequence[Component]
    ablation: str
    constant: Tensor | None

    @classmethod
    def of(cls, model: Transformer, chosen: Sequence[Component], ablation: str, over: Tensor, length: int) -> Finer:
        """`over` and `length` are those of `pairs.constant_parts`.

        Raises:
            UnknownName: all biases together, ablated by zero: a reader reads those of the layers before it alone.
        """
        if ablation == "zero" and components.BIASES in chosen:
            raise UnknownName("'bias' is the biases of all layers, and a reader reads those before it alone; give '0.bias', …")
        in_order = sorted(chosen, key=components.written_at)
        constant = constant_parts(model, ablation, over, length, partial(parts, model, in_order), len(in_order))
        return cls(model, in_order, ablation, constant)

    @property
    def writers(self) -> tuple[str, ...]:
        """Their labels."""
        return tuple(map(str, self.components))

    @cached_property
    def mask(self) -> Edges:
        """Which edges leave them."""
        return components.reach_mask(self.model.cfg, self.components, components.readers(self.model.cfg))

    def beside(self, graph: Graph, nodes: slice) -> slice:
        """Those that write where these nodes of a graph do."""
        states = {components.written_at(components.parse(name, graph.cfg)) for name in graph.writers[nodes]}
        found = [number for number, one in enumerate(self.components) if components.written_at(one) in states]
        return slice(found[0], found[-1] + 1) if found else slice(0, 0)

    def change(self, tokens: Tensor, source: Tensor | None, kept: KeyValueCache | None = None, now: Parts | None = None) -> Parts:
        """What their edges carry when ablated, beyond what they carry in the run of `tokens` (`now`)."""
        now = parts(self.model, self.components, tokens, kept) if now is None else now
        if self.constant is not None:
            base = self.constant[:, None]
        else:
            assert source is not None
            base = parts(self.model, self.components, source, kept)
        change = base - now
        if self.ablation != "zero":
            change[[number for number, one in enumerate(self.components) if one.constant]] = 0
        return change


@torch.no_grad()
def parts(model: Transformer, chosen: Sequence[Component], tokens: Tensor, kept: KeyValueCache | None = None) -> Parts:
    """What these components add in a run, which goes on after `kept` keys and values."""
    if not chosen:
        return model.W_U.new_zeros(0, *tokens.shape, model.cfg.d_model)
    names = components.sites(model.cfg, chosen)
    _, run = Transformer.run_with_cache(model, tokens, names_filter=names, return_type=None, past_kv_cache=kept)
    return decompose.written(model, run, chosen, tokens.shape)
