"""Tests of an explanation inside the model: activations are exchanged among inputs that the program calls equal.

Nodes are the heads of every layer and the MLPs. A node's class at a place is what the program knows there: in the last
layer the variables that the program reads at this place, for the last MLP the answer, in earlier layers the variables that
later lines read (and, in one of the ways that are tried, those that are read at the end). If the program is what the model
does, exchanging within classes changes nothing (causal scrubbing);
exchanging among all places, the baseline, destroys the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.explain.fitting import Fit, batch_of, tree_answers, values, variables
from cutaway.explain.subject import InputSet, Subject
from cutaway.explain.tree import Leaf, Tree
from cutaway.programs.language import Attend, reads

NOTHING = 1e-6  # of loss
Node = tuple[int, int | None]  # layer, and a head or None for the MLP
Matches = dict[Node, Int[Tensor, "item"]]


def name_of(node: Node) -> str:
    """A node's label: `0.3` for a head, `0.mlp`."""
    return f"{node[0]}.{'mlp' if node[1] is None else node[1]}"


@dataclass(frozen=True, eq=False)
class Scrubbed:
    """Losses of the model's own answers, for each sequence: as it is, exchanged within classes, and at the same places at random.

    Args:
        tested: node → the share of positions whose partner had other inputs.
    """

    clean: Float[Tensor, "batch"]
    within: Float[Tensor, "batch"]
    at_random: Float[Tensor, "batch"]
    tested: dict[Node, float]

    def recovered(self, rows: Tensor | None = None) -> float:
        """The share of the loss that exchanging within classes keeps."""
        clean, within, at_random = (x if rows is None else x[rows] for x in (self.clean, self.within, self.at_random))
        whole = float((at_random - clean).mean())
        if self.tested and not any(self.tested.values()):
            return 0.0  # every place was exchanged with itself, which tests nothing
        if whole <= NOTHING:  # no node matters: the answers come straight from the embedding
            return float(float((within - clean).abs().mean()) <= NOTHING)
        return 1 - float((within - clean).mean()) / whole


class Exchange:
    """Runs a model with activations of nodes replaced by those of other positions.

    Args:
        subject: the model.
        part: inputs, on which the model's answers are known.
    """

    def __init__(self, subject: Subject, part: InputSet, seed: int = 0) -> None:
        self.subject, self.part = subject, part
        cfg = subject.cfg
        self.nodes: list[Node] = [(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        if not cfg.attn_only:
            self.nodes += [(layer, None) for layer in range(cfg.n_layers)]
        self.generator = torch.Generator().manual_seed(seed)
        self.flat = part.prompts.mask.flatten().nonzero().flatten()  # every position that holds a token
        cache = subject.cached(part.prompts, tuple(self.site(node) for node in self.nodes))
        self.kept = {node: self._of(cache[self.site(node)], node) for node in self.nodes}

    @staticmethod
    def site(node: Node) -> str:
        """Where a node writes."""
        layer, head = node
        return f"blocks.{layer}.hook_mlp_out" if head is None else f"blocks.{layer}.attn.hook_z"

    @staticmethod
    def _of(x: Tensor, node: Node) -> Tensor:
        return (x if node[1] is None else x[:, :, node[1]]).flatten(0, 1).clone()

    def run(self, chosen: dict[Node, Int[Tensor, "place"]]) -> Float[Tensor, "batch"]:
        """The loss of each sequence where nodes hold what they had at `chosen` (flat places, one for each)."""
        shape = self.part.prompts.tokens.shape

        def put(node: Node, source: Tensor) -> tuple[str, Callable[..., Tensor]]:
            def hook(x: Tensor, hook: Any) -> Tensor:
                new = self.kept[node][source].view(*shape, -1)
                if node[1] is None:
                    return new
                x[:, :, node[1]] = new
                return x

            return self.site(node), hook

        with torch.no_grad():
            hooks = [put(node, source) for node, source in chosen.items()]
            hidden = self.subject.masked(self.part.prompts.mask)
            return self.loss(self.subject.model.run_with_hooks(self.part.prompts.tokens, fwd_hooks=hooks, **hidden))

    def loss(self, logits: Float[Tensor, "batch pos token"]) -> Float[Tensor, "batch"]:
        """The mean loss of the model's own answers in each sequence."""
        counted = self.part.counted
        return (self.loss_at(logits) * counted).sum(1) / counted.sum(1).clamp(min=1)

    def loss_at(self, logits: Float[Tensor, "batch pos token"]) -> Float[Tensor, "batch pos"]:
        """The loss of the model's own answer at every position."""
        answers = self.part.answers
        if not self.subject.several:
            return F.cross_entropy(logits.transpose(1, 2), answers, reduction="none")
        sets = torch.zeros(len(self.subject.sets), logits.shape[-1])
        for number, tokens in enumerate(self.subject.sets):
            sets[number, list(tokens)] = 1.0
        return F.binary_cross_entropy_with_logits(logits, sets[answers], reduction="none").mean(-1)

    def shuffled(self) -> Int[Tensor, "place"]:
        """A random partner for every place that holds a token; others stay."""
        out = torch.arange(self.part.prompts.tokens.numel())
        out[self.flat] = self.flat[torch.randperm(len(self.flat), generator=self.generator)]
        return out

    def elsewhere(self, source: Int[Tensor, "place"]) -> Int[Tensor, "place"]:
        """The same exchange with random partners, at the places whose partner is in another sequence; the others stay."""
        width = self.part.prompts.tokens.shape[1]
        moves = (source // width) != (torch.arange(len(source)) // width)
        return torch.where(moves, self.shuffled(), source)

    def within(self, keys: Int[Tensor, "place key"]) -> tuple[Int[Tensor, "place"], float]:
        """A partner of equal key for every place, and the share of answered places whose partner is in another sequence."""
        _, classes = torch.unique(keys[self.flat], dim=0, return_inverse=True)
        order = torch.rand(len(classes), generator=self.generator).argsort()
        order = order[classes[order].argsort(stable=True)]  # classes together, each in random order
        sorted_classes = classes[order]
        following = torch.arange(len(order)) + 1
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = sorted_classes[1:] != sorted_classes[:-1]
        starts = torch.where(first, torch.arange(len(order)), 0).cummax(0).values
        ends = torch.cat([first[1:], torch.tensor([True])])
        following[ends] = starts[ends]  # the last of a class takes the first
        partner = torch.empty_like(order)
        partner[order] = order[following]
        out = torch.arange(keys.shape[0])
        out[self.flat] = self.flat[partner]
        width = self.part.prompts.tokens.shape[1]
        elsewhere = (out // width) != (torch.arange(len(out)) // width)
        return out, float(elsewhere[self.part.counted.flatten()].double().mean())


def classes(
    fitted: Fit, subject: Subject, part: InputSet, exchange: Exchange, *, own: str, early: bool = False
) -> dict[Node, Int[Tensor, "place key"]]:
    """What the program knows at every place, for each node; and `own`, the place's `tokens` or `positions`, if not empty.

    With `early`, nodes of every layer may hold what is read at the end, as far as so many layers can make it.
    """
    setting, batch = fitted.setting, batch_of(fitted.setting, part)
    depths: dict[str, int] = {}
    feeding: set[str] = set()  # heads that a later head reads: what they found must be in the stream before the last layer
    attended: dict[str, Tensor] = {}
    for one in variables(fitted.tree):
        values(batch, setting, one)
        for line in one.lines:
            below = max((depths.get(name, 0) for name in reads(line)), default=0)
            depths[line.name] = below + isinstance(line, Attend)
            if isinstance(line, Attend):
                attended[line.name] = _coded(batch.values[line.name])
                feeding |= {name for name in reads(line) if name in attended}
    leaf, read = _read_at(fitted, part, attended)
    candidates = [batch.values[own]] if own else []
    answer = _answer_everywhere(fitted, part)
    last = subject.cfg.n_layers - 1
    found = {}
    for layer, head in exchange.nodes:
        if layer == last:  # nothing reads a last layer's node but the answer, so it holds what that reads
            parts = [part.counted.long(), answer] if head is None else [part.counted.long(), leaf, *read.values()]
        else:
            made = [name for name in attended if depths[name] <= layer + 1]
            parts = [attended[name] for name in made if name in feeding]
            if early:
                parts += [part.counted.long(), *(read[name] for name in made)]
        parts = [*candidates, *parts] or [torch.zeros_like(part.prompts.tokens)]
        found[(layer, head)] = torch.stack([x.flatten() for x in parts], 1)
    return found


def _read_at(
    fitted: Fit, part: InputSet, attended: dict[str, Tensor]
) -> tuple[Int[Tensor, "batch pos"], dict[str, Int[Tensor, "batch pos"]]]:
    """Which leaf each place is in, and the heads' values that the way to it and the leaf itself read."""
    batch = batch_of(fitted.setting, part)
    leaf = torch.full_like(part.prompts.tokens, -1)
    used = {name: torch.zeros_like(part.prompts.mask) for name in attended}

    def walk(node: Tree, where: Tensor, way: frozenset[str], number: int) -> int:
        if isinstance(node, Leaf):
            here = way | ({line.name for line in node.variable.lines} if node.variable is not None else set())
            leaf[where] = number
            for name in here & set(used):
                used[name] |= where
            return number + 1
        of = node.test.variable
        holds = node.test.holds({of.name: values(batch, fitted.setting, of)})
        way = way | {line.name for line in of.lines}
        return walk(node.no, where & ~holds, way, walk(node.yes, where & holds, way, number))

    walk(fitted.tree, part.counted, frozenset(), 0)
    return leaf, {name: codes.where(used[name], torch.tensor(-1)) for name, codes in attended.items()}


def _coded(x: Tensor) -> Int[Tensor, "batch pos"]:
    """Values as whole numbers; numbers are equal where they agree to six places."""
    if x.ndim == 2:
        return x
    return torch.unique(x.flatten(0, 1).mul(1e6).round().long(), dim=0, return_inverse=True)[1].view(x.shape[:2])


def _answer_everywhere(fitted: Fit, part: InputSet) -> Int[Tensor, "batch pos"]:
    """The program's answer at every position of an input; -1 where none is asked for."""
    grid = torch.full_like(part.prompts.tokens, -1)
    grid[part.counted] = tree_answers(fitted, part)
    return grid


def scrub(
    fitted: Fit,
    subject: Subject,
    part: InputSet,
    nodes: Sequence[Node],
    exchange: Exchange,
    *,
    together: bool = False,
    own: str = "",
    early: bool = False,
) -> Scrubbed:
    """Exchange the activations of these nodes within the program's classes, and at random.

    With `together`, the heads of one layer have one partner: a variable is then held by all of them jointly. With `own`,
    partners also have the same `tokens` at that place, or the same `positions`. With `early`, earlier layers hold what is read
    at the end.
    """
    keys = classes(fitted, subject, part, exchange, own=own, early=early)
    chosen, tested = {}, {}
    of_layer: dict[int, tuple[Tensor, float]] = {}
    for node in nodes:
        layer, head = node
        if together and head is not None:
            of_layer.setdefault(layer, exchange.within(keys[node]))
            chosen[node], tested[node] = of_layer[layer]
        else:
            chosen[node], tested[node] = exchange.within(keys[node])
    random = {node: exchange.elsewhere(source) for node, source in chosen.items()}
    return Scrubbed(exchange.run({}), exchange.run(chosen), exchange.run(random), tested)


@dataclass(frozen=True, eq=False)
class NodeSet:
    """The nodes that carry the answers.

    Args:
        effects: node → how much the loss rises when it alone is exchanged at random.
        inside: the nodes kept; the others are exchanged at random without much loss.
        clean, without, destroyed: losses of each sequence as it is, with everything outside exchanged, with everything exchanged.
    """

    effects: dict[Node, float]
    inside: tuple[Node, ...]
    clean: Float[Tensor, "batch"]
    without: Float[Tensor, "batch"]
    destroyed: Float[Tensor, "batch"]

    def share(self, rows: Tensor | None = None) -> float:
        """The share of the exact effect that lies inside."""
        clean, without, destroyed = (x if rows is None else x[rows] for x in (self.clean, self.without, self.destroyed))
        whole = float((destroyed - clean).mean())
        if whole <= NOTHING:
            return float(float((without - clean).abs().mean()) <= NOTHING)
        return 1 - float((without - clean).mean()) / whole


def localise(exchange: Exchange, *, keep: float = 0.99, size: int | None = None) -> NodeSet:
    """The smallest set of nodes, largest effects first, outside of which exchanging costs at most `1 - keep` of the effect.

    With `size`, a random set of so many nodes in its place.
    """
    clean = exchange.run({})
    effects = {node: float((exchange.run({node: exchange.shuffled()}) - clean).mean()) for node in exchange.nodes}
    destroyed = exchange.run({node: exchange.shuffled() for node in exchange.nodes})
    ordered = sorted(exchange.nodes, key=lambda node: -effects[node])
    if size is not None:
        ordered = [exchange.nodes[n] for n in torch.randperm(len(exchange.nodes), generator=exchange.generator).tolist()]
    for count in range(len(ordered) + 1) if size is None else [size]:
        inside = tuple(ordered[:count])
        without = exchange.run({node: exchange.shuffled() for node in exchange.nodes if node not in inside})
        found = NodeSet(effects, inside, clean, without, destroyed)
        if size is not None or found.share() >= keep:
            return found
    return found
