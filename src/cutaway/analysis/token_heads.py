"""Which head handles which token, read from weights: detectors of duplicates, and the heads responsible for answers.

A head detects duplicates of a token if, from that token, it attends to the same token; it is an anti-duplicate
detector if it looks everywhere but there. A later head is responsible for a token if what it moves of that token,
directly or by way of earlier heads, changes the token's own logit most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.scales import NormScales
from cutaway.analysis.shared import ARROW, head_names, vocabulary
from cutaway.analysis.weight_circuits import WeightCircuit, circuit_by_row, label_ids, path_circuit, qk_circuit
from cutaway.errors import ShapeError
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import EVERY, index, one_of, options
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result
from cutaway.view import Figure, Panel, heat_map, small_multiples

HeadTokens = dict[str, list[str]]


@dataclass(frozen=True, eq=False)
class DuplicateDetectors(Result):
    """How much each head of a layer would attend from a token to the same token, `[head, token]`, among those given."""

    values: Labelled
    above: float
    below: float

    def of(self, kind: str) -> HeadTokens:
        """Head → tokens that it is a detector of; kinds are `duplicate` and `anti_duplicate`.

        Raises:
            UnknownName: it is no such kind.
        """
        chosen = {"duplicate": self.values.data > self.above, "anti_duplicate": self.values.data < self.below}
        return _listed(self.values, chosen[one_of(kind, tuple(chosen), "kind of detector")])

    @property
    def duplicate(self) -> HeadTokens:
        """Head → tokens to whose duplicates it attends."""
        return self.of("duplicate")

    @property
    def anti_duplicate(self) -> HeadTokens:
        """Head → tokens whose duplicates it looks away from."""
        return self.of("anti_duplicate")

    def heads(self, kind: str, token: str) -> list[str]:
        """The heads that are detectors of this kind for one token."""
        return [head for head, tokens in self.of(kind).items() if token in tokens]

    def figure(self) -> Figure:
        """Heads × tokens; detectors are marked."""
        marks = [(*at, "duplicate detector") for at in (self.values.data > self.above).nonzero().tolist()]
        marks += [(*at, "anti-duplicate detector") for at in (self.values.data < self.below).nonzero().tolist()]
        return heat_map(
            self.values.data, self.values.names("token"), self.values.names("head"), x_name="token", y_name="head",
            value_name="attention to the same token", title="Detectors of duplicates, from weights", marks=marks,
            scale="sequential", range=(0, 1),
        )  # fmt: skip

    def summary(self) -> str:
        """Which heads detect which tokens."""
        lines = [f"attention from each token to itself among {self.values.shape[1]} tokens, from weights"]
        for name, kind, limit in (
            ("duplicate", "duplicate", f"above {self.above:g}"),
            ("anti-duplicate", "anti_duplicate", f"below {self.below:g}"),
        ):
            found = ", ".join(f"{head}: {_short(tokens)}" for head, tokens in self.of(kind).items() if tokens)
            lines.append(f"{name} detectors ({limit}): {found or 'none'}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The values, and head → tokens for each kind."""
        return super().to_json() | {"duplicate": self.duplicate, "anti_duplicate": self.anti_duplicate}


@with_provenance
@options(above=EVERY, below=EVERY)
def duplicate_detectors(
    model: Transformer,
    *,
    layer: int = 0,
    scales: NormScales | None = None,
    tokens: Sequence[str | int] | None = None,
    above: float = 0.30,
    below: float = 0.04,
    vocab: Sequence[str] | None = None,
) -> DuplicateDetectors:
    """Duplicate and anti-duplicate detectors, by the softmaxed QK circuit of token embeddings.

    Args:
        tokens: which tokens a query chooses among (also the queries); all where None.
        above: a head whose attention to the same token is more than this detects its duplicates.
        below: less than this, and it is an anti-duplicate detector.

    Raises:
        UnknownName: no such token.
        ShapeError: no such layer.
    """
    names, layer = vocabulary(model, vocab), index(layer, model.cfg.n_layers, "layer")
    chosen = label_ids(tokens, names, "token")
    rows = []
    for head in head_names(model.cfg, [layer]):
        circuit = qk_circuit(model, head, scales=scales, vocab=names)
        circuit = circuit if tokens is None else circuit.part(chosen, chosen)
        rows.append(circuit.self_attention().data)
    labels = {"head": head_names(model.cfg, [layer]), "token": [names[i] for i in chosen]}
    return DuplicateDetectors(
        Labelled(torch.stack(rows), ("head", "token"), labels, "attention to the same token", "probability"), above, below
    )


@dataclass(frozen=True, eq=False)
class ResponsibleHeads(Result):
    """What each head of a layer does to the logit of each token when it moves that token, `[head, token, via]`.

    `via` is `direct` (the embedding) or an earlier head that moved the token before.
    """

    values: Labelled

    @property
    def strength(self) -> Labelled:
        """The norm over `via`, `[head, token]`: the head where it is largest is responsible."""
        labels = {axis: self.values.names(axis) for axis in ("head", "token")}
        return Labelled(self.values.data.norm(dim=-1), ("head", "token"), labels, "norm of the diagonal", self.values.unit)

    @property
    def head_of(self) -> dict[str, str]:
        """Token → the responsible head."""
        heads = self.values.names("head")
        best = self.strength.data.argmax(0).tolist()
        return {token: heads[i] for token, i in zip(self.values.names("token"), best, strict=True)}

    @property
    def tokens_of(self) -> HeadTokens:
        """Head → the tokens that it is responsible for."""
        out: HeadTokens = {head: [] for head in self.values.names("head")}
        for token, head in self.head_of.items():
            out[head].append(token)
        return out

    def figure(self) -> Figure:
        """The diagonals: for each head, tokens × the ways by which they came."""
        via, tokens = self.values.names("via"), self.values.names("token")
        panels = [Panel(head, part, via, tokens) for head, part in zip(self.values.names("head"), self.values.data, strict=True)]
        return small_multiples(
            panels,
            x_name="by way of",
            y_name="token",
            value_name="its own logit",
            title="What heads do to the logit of what they move",
        )

    def summary(self) -> str:
        """Which head is responsible for which tokens."""
        found = ", ".join(f"{head}: {_short(tokens)}" for head, tokens in self.tokens_of.items() if tokens)
        return f"responsible heads, by the largest effect of a token on its own logit: {found}"

    def to_json(self) -> dict[str, Any]:
        """The values, and head → tokens."""
        return super().to_json() | {"tokens_of": self.tokens_of}


@with_provenance
def responsible_heads(
    model: Transformer,
    *,
    layer: int = -1,
    scales: NormScales | None = None,
    tokens: Sequence[str | int] | None = None,
    vocab: Sequence[str] | None = None,
) -> ResponsibleHeads:
    """For each token the head of `layer` whose OV circuit, alone and after each earlier head, moves its own logit most.

    Args:
        layer: whose heads; the last by default.
        tokens: which tokens; all where None.

    Raises:
        UnknownName: no such token.
        ShapeError: no such layer.
    """
    layer = index(layer, model.cfg.n_layers, "layer")
    names = vocabulary(model, vocab)
    chosen = label_ids(tokens, names, "token")
    before = head_names(model.cfg, range(layer))
    stack = []
    for head in head_names(model.cfg, [layer]):
        routes = [["embed", head, "logits"], *(["embed", earlier, head, "logits"] for earlier in before)]
        diagonals = [path_circuit(model, ARROW.join(route), scales=scales, vocab=names).diagonal().data for route in routes]
        stack.append(torch.stack(diagonals, -1)[chosen])
    labels = {"head": head_names(model.cfg, [layer]), "token": [names[i] for i in chosen], "via": ["direct", *before]}
    return ResponsibleHeads(
        Labelled(torch.stack(stack), ("head", "token", "via"), labels, "effect of a token on its own logit", "logits")
    )


def full_circuits(
    model: Transformer,
    found: DuplicateDetectors,
    answer: ResponsibleHeads,
    *,
    scales: NormScales | None = None,
    vocab: Sequence[str] | None = None,
) -> dict[str, WeightCircuit]:
    """How duplicates and their absence reach the logits: each token by way of its own detectors and heads.

    Rows are the tokens that both `found` and `answer` know, columns all logits. The circuits are `duplicate` (through
    the responsible head), `anti_duplicate` (through all heads of that layer), and this one split in two:
    `anti_duplicate_responsible` and `anti_duplicate_other`.
    """
    tokens = [token for token in found.values.names("token") if token in answer.values.names("token")]
    if not tokens:
        raise ShapeError("the detectors and the responsible heads have no token in common")
    heads = list(answer.values.names("head"))
    responsible = answer.head_of

    def circuit(name: str, kind: str, ends: Mapping[str, Sequence[str]]) -> WeightCircuit:
        routes = {}
        for token in tokens:
            first, last = found.heads(kind, token), ends[token]
            routes[token] = ARROW.join(["embed", "+".join(first), "+".join(last), "logits"]) if first and last else ""
        if not any(routes.values()):
            like = path_circuit(model, "embed → logits", scales=scales, vocab=vocab)
            return replace(like, name=name, factors=(like.factors[0].new_zeros(len(tokens), like.shape[1]),), rows=tuple(tokens))
        return replace(circuit_by_row(model, routes, scales=scales, vocab=vocab), name=name)

    own = {token: [responsible[token]] for token in tokens}
    others = {token: [head for head in heads if head != responsible[token]] for token in tokens}
    return {
        "duplicate": circuit("duplicate, through the responsible head", "duplicate", own),
        "anti_duplicate": circuit("anti-duplicate, through all heads", "anti_duplicate", dict.fromkeys(tokens, heads)),
        "anti_duplicate_responsible": circuit("anti-duplicate, through the responsible head", "anti_duplicate", own),
        "anti_duplicate_other": circuit("anti-duplicate, through the other heads", "anti_duplicate", others),
    }


def _listed(values: Labelled, chosen: Float[Tensor, "head token"] | Tensor) -> HeadTokens:
    tokens = values.names("token")
    return {
        head: [token for token, yes in zip(tokens, row, strict=True) if yes]
        for head, row in zip(values.names("head"), chosen.tolist(), strict=True)
    }


def _short(tokens: Sequence[str], most: int = 24) -> str:
    if all(len(token) == 1 for token in tokens) and len(tokens) <= most:
        return "".join(tokens)
    return ", ".join(map(repr, tokens[:8])) + (f" and {len(tokens) - 8} more" if len(tokens) > 8 else "")
