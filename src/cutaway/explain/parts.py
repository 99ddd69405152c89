"""Roles of nodes beside the program: positions that are an exception, and heads by token.

A layer before the last that writes an answer past the later ones does so directly, to the logits: its output is exchanged in the
last residual stream alone, at every position. Where that matters at few positions only, they are exceptions that the program's
lines do not show. Of two attention-only layers whose program finds repeated tokens, the weights say which heads of the first
layer detect them and which head of the second is responsible for each token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.analysis.scales import norm_scales
from cutaway.analysis.token_heads import duplicate_detectors, responsible_heads
from cutaway.analysis.token_roles import readable
from cutaway.explain.fitting import Fit
from cutaway.explain.substitution import Exchange, Node, name_of

MATTERS = 0.5  # nats
TIMES = 4  # as much as at the median position
SOME = 0.25  # of the positions, at most, are exceptions; of the largest node's effect, at least, has a node that is named
TokensOf = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Exceptional:
    """Positions at which a layer before the last writes the answer directly.

    Args:
        effects: position → the rise of the loss there, in nats, when the layer's output is exchanged in the last stream.
        elsewhere: the largest rise at any other position.
        nodes: those with most of the effect.
    """

    layer: int
    effects: dict[int, float]
    elsewhere: float
    nodes: tuple[str, ...]

    def sentence(self) -> str:
        """What it means, in words."""
        places = ", ".join(f"{at} ({effect:.1f} nats)" for at, effect in self.effects.items())
        which = "position" if len(self.effects) == 1 else "positions"
        return (
            f"{which} {places}: layer {self.layer} writes the answer directly there and hardly elsewhere "
            f"(at most {self.elsewhere:.1f}); mostly {', '.join(self.nodes)}"
        )


@dataclass(frozen=True)
class NodeRoles:
    """What nodes do, each list by head: tokens whose repeats it detects, that it detects anything but, that it answers."""

    exceptional: tuple[Exceptional, ...] = ()
    duplicate: TokensOf = field(default_factory=dict)
    anti_duplicate: TokensOf = field(default_factory=dict)
    responsible: TokensOf = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """All of it, in words."""
        named = {
            "duplicate detectors": self.duplicate, "anti-duplicate detectors": self.anti_duplicate,
            "responsible heads": self.responsible,
        }  # fmt: skip
        said = [f"{name}, by weights: {listed}" for name, of in named.items() if (listed := _listed(of))]
        return said + [one.sentence() for one in self.exceptional]


def _listed(tokens_of: TokensOf) -> str:
    return "; ".join(f"{head}: {' '.join(tokens)}" for head, tokens in tokens_of.items() if tokens)


def parts_of(fitted: Fit, exchange: Exchange) -> NodeRoles:
    """The exceptional positions, and the heads by token where the program finds repeated tokens."""
    found = tuple(exceptional(exchange))
    cfg, prompts = exchange.subject.cfg, exchange.part.prompts
    repeats = any(line.name == "repeated" for line in fitted.program.live)
    if not (repeats and readable(cfg) and bool(prompts.mask.all())):
        return NodeRoles(found)
    model, tokens = exchange.subject.model, list(fitted.setting.content)
    with torch.no_grad():
        scales = norm_scales(model, prompts.tokens)
        marks = duplicate_detectors(model, scales=scales, tokens=tokens)
        answers = responsible_heads(model, scales=scales, tokens=tokens)
    return NodeRoles(found, marks.duplicate, marks.anti_duplicate, answers.tokens_of)


def exceptional(exchange: Exchange) -> list[Exceptional]:
    """Of each layer but the last, the few positions at which it writes the answer directly; none where lengths vary."""
    counted = exchange.part.counted
    places = counted[0].nonzero().flatten().tolist()
    last = exchange.subject.cfg.n_layers - 1
    if not last or len(places) < 1 / SOME or not bool((counted == counted[0]).all() and exchange.part.prompts.mask.all()):
        return []
    direct = _Direct(exchange)
    found = []
    for layer in range(last):
        nodes = [node for node in exchange.nodes if node[0] == layer]
        rises = direct.rises(nodes)
        most = max(MATTERS, TIMES * float(rises[places].median()))
        there = [at for at in places if float(rises[at]) > most]
        if there and len(there) <= SOME * len(places):
            alone = {node: float(direct.rises([node])[there].sum()) for node in nodes}
            least = SOME * max(alone.values())
            named = sorted((node for node in nodes if alone[node] >= least), key=lambda node: -alone[node])
            others = [float(rises[at]) for at in places if at not in there]
            effects = {at: float(rises[at]) for at in there}
            found.append(Exceptional(layer, effects, max(others), tuple(map(name_of, named))))
    return found


class _Direct:
    """The loss at each position when nodes' outputs are exchanged in the last residual stream alone."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.site = f"blocks.{exchange.subject.cfg.n_layers - 1}.hook_resid_post"
        self.final: Tensor = exchange.subject.cached(exchange.part.prompts, (self.site,))[self.site]
        self.partner = torch.randperm(len(self.final), generator=torch.Generator().manual_seed(0))
        self.clean = self.loss(self.final)

    def written(self, node: Node) -> Float[Tensor, "batch pos d_model"]:
        layer, head = node
        out = self.exchange.kept[node].view(*self.final.shape[:2], -1)
        return out if head is None else out @ self.exchange.subject.model.blocks[layer].attn.W_O[head]

    @torch.no_grad()
    def rises(self, nodes: Sequence[Node]) -> Float[Tensor, "pos"]:
        """How much the loss rises at each position, partners being at the same one of another input."""
        out = torch.stack([self.written(node) for node in nodes]).sum(0)
        return (self.loss(self.final + out[self.partner] - out) - self.clean).mean(0)

    @torch.no_grad()
    def loss(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        tokens = self.exchange.part.prompts.tokens
        logits = self.exchange.subject.model.run_with_hooks(tokens, fwd_hooks=[(self.site, lambda x, hook: stream)])
        return self.exchange.loss_at(logits)
