"""Products by representations: which irreducible ones carry the answer, and the program that they make.

cos(w(a + b - c)) = cos(wc)cos(w(a + b)) + sin(wc)sin(w(a + b)), and cos(w(a + b)) = cos(wa)cos(wb) - sin(wa)sin(wb): a network
that adds modulo p keeps a few frequencies w = 2πk/p of each number, and its logit of c is a sum of cos(w(a + b - c)) over them
(https://arxiv.org/abs/2301.05217). Frequencies are the representations of a cyclic group; networks that compose the elements of
other groups have traces of ρ(a)ρ(b)ρ(c)^-1 as logits (https://arxiv.org/abs/2302.03025). The model is run on all pairs: if its
answers are a group's products and its logits are mostly such traces, the program is their sum over the fewest representations
that keep 99% of its answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.explain.groups import Elements, FiniteGroup, Representation, group_of
from cutaway.explain.mechanisms import CHOICE, FIRST, LATEST, Proposal, Setting
from cutaway.explain.subject import InputSet, Subject
from cutaway.programs.language import Attend, Line, Map, Multiply, Selector, Table, Term, Weigh

MOST = 256  # elements
KEPT = 0.99  # of the answers
TRACES = 0.5  # of the logits' variance, at least, for the network to compute by traces


@dataclass(frozen=True)
class Spectrum:
    """The representations that carry a product, of sums modulo a number: the frequencies.

    Args:
        size: how many elements there are.
        cyclic: whether the product is a sum modulo `size`.
        names: the frequency k of w = 2πk/n, or a dimension and a letter; largest share of the logits first.
        shares, of_logits: of the embedding's variance, and of the logits', by representation.
        largest: whether these are the largest of the embedding's.
        kept: answers that stay if all else is taken out of the logits; `alone`, of the embedding.
        removed: answers that are right without these in the embedding.
        identity: the share of the logits' variance that traces of ρ(a)ρ(b)ρ(c)^-1 explain: of sums, cosines of w(a + b - c).
    """

    size: int
    cyclic: bool
    names: tuple[str, ...]
    shares: tuple[float, ...]
    of_logits: tuple[float, ...]
    largest: bool
    kept: float
    alone: float
    removed: float
    identity: float

    def sentence(self) -> str:
        """What was found, in words."""
        what = f"the sum modulo {self.size}" if self.cyclic else f"the product in a group of {self.size} elements"
        kinds = "frequencies" if self.cyclic else "irreducible representations"
        waves = "cosines of w(a + b - c)" if self.cyclic else "traces of ρ(a)ρ(b)ρ(c)^-1"
        order = "the largest" if self.largest else "not the largest"
        return (
            f"{what} is carried by the {kinds} {', '.join(self.names)}, {order} of the embedding's spectrum "
            f"({sum(self.shares):.1%} of its variance); {waves} with them are {self.identity:.1%} of the logits' variance; "
            f"answers that stay with nothing else in the logits: {self.kept:.1%}, with nothing else in the embedding: "
            f"{self.alone:.1%}, without them in the embedding: {self.removed:.1%}"
        )


@dataclass(frozen=True, eq=False)
class PairedInputs:
    """All pairs of elements that stand at two places of the inputs.

    Args:
        places: where the two stand; `elements` their tokens, ascending.
        tokens: `[a · n + b]`, an input for each pair; `at` the place of the answer.
    """

    places: tuple[int, int]
    elements: Elements
    tokens: Int[Tensor, "pair pos"]
    at: int

    @classmethod
    def of(cls, part: InputSet) -> PairedInputs | None:
        """The pairs of inputs in which two tokens vary, and the others and the place of the answer stay."""
        prompts = part.prompts
        answered = part.counted.any(0).nonzero().flatten().tolist()
        if len(prompts.lengths.unique()) > 1 or len(answered) != 1:
            return None
        varying = [place for place, column in enumerate(prompts.tokens.T) if len(column.unique()) > 1]
        if len(varying) != 2 or varying[1] > answered[0] or prompts.tokens.shape[1] < 3:
            return None
        elements = prompts.tokens[:, varying].unique()
        if not 2 <= len(elements) <= MOST:
            return None
        tokens = prompts.tokens[:1].repeat(len(elements) ** 2, 1)
        tokens[:, varying] = torch.cartesian_prod(elements, elements)
        return cls((varying[0], varying[1]), elements, tokens, answered[0])


@dataclass(frozen=True, eq=False)
class Product:
    """What a network does with all pairs: a product of a group's elements, and its logits.

    Args:
        logits: `[pair, element]`, centred.
        answers: the network's own, as elements.
    """

    pairs: PairedInputs
    group: FiniteGroup
    left: Elements
    right: Elements
    logits: Float[Tensor, "pair element"]
    answers: Int[Tensor, "pair"]

    @property
    def expected(self) -> Int[Tensor, "pair"]:
        """The product of each pair."""
        return self.group.products[self.left][:, self.right].flatten()


def product_of(subject: Subject, part: InputSet) -> Product | None:
    """The product that the answers are; mistakes of the network may stand where the examples do not tell."""
    pairs = None if subject.several else PairedInputs.of(part)
    if pairs is None or int(pairs.elements.max()) >= subject.cfg.d_vocab_out:
        return None
    n, elements = len(pairs.elements), pairs.elements
    logits = subject.logits(pairs.tokens)[:, pairs.at].double()
    number = torch.full((subject.cfg.d_vocab_out,), -1)
    number[elements] = torch.arange(n)
    answers = number[logits.argmax(-1)]
    table = answers.clone()
    right = number[subject.right(part.prompts)[:, pairs.at]]
    table[(torch.searchsorted(elements, part.prompts.tokens[:, list(pairs.places)]) * torch.tensor([n, 1])).sum(1)] = right
    for one in (table, answers):
        found = group_of(one.view(n, n)) if int(one.min()) >= 0 else None
        if found is not None:
            logits = logits[:, elements]
            return Product(pairs, *found, logits - logits.mean(1, keepdim=True), answers)
    return None


def traces(subject: Subject, product: Product, setting: Setting) -> tuple[Proposal, Spectrum] | None:
    """The program of a network that computes a product by representations, and its spectrum; None where it does not."""
    with torch.no_grad():
        weights, shares = _weights(product)
        chosen, kept = _fewest(product, weights, shares)
        if not chosen or sum(float(shares[one]) for one in chosen) < TRACES:
            return None
        spectrum = _spectrum(subject, product, chosen, shares, kept)
    return _votes(product, {one: float(weights[one]) for one in chosen}, setting), spectrum


def product_table(product: Product, setting: Setting) -> Proposal:
    """The product as a table: what a network does that has learnt a group's products by heart."""
    group, elements = product.group, product.pairs.elements
    number = torch.zeros(setting.d_vocab, dtype=torch.long)
    number[elements] = torch.arange(group.size)
    table = elements[product.expected.view(group.size, -1)][number][:, number]
    lines = _places(product)
    name = "sum" if group.exponents is not None else "product"
    made = Map(f"{name}_of_{group.size}", tuple(line.name for line in lines), tuple(table.flatten().tolist()), setting.d_answers)
    generators = 2 if group.exponents is None else 1
    return Proposal((*lines, made), 4 * CHOICE + (generators + 1) * group.size * math.log2(group.size), answers=True)


def _weights(product: Product) -> tuple[Float[Tensor, "rep"], Float[Tensor, "rep"]]:
    """The factor of each representation's trace in the logits, and the share of their variance that it explains."""
    group, n = product.group, product.group.size
    sums = torch.zeros(n, n, dtype=torch.float64).index_add_(0, product.expected, product.logits)  # [a ∘ b, c]
    weights, shares = [], []
    for one in group.representations:
        kernel = one.characters[group.quotients]  # [c, g]: the trace of g ∘ c^-1, as characters are constant on classes
        weights.append(float((sums.T * kernel).sum()) / (n * float(kernel.square().sum())))
        shares.append(weights[-1] ** 2 * n * float(kernel.square().sum()) / float(product.logits.square().sum()))
    return torch.tensor(weights, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)


def _fewest(product: Product, weights: Tensor, shares: Tensor) -> tuple[list[int], float]:
    """The fewest representations, largest shares first, that keep the answers if all else is taken out of the logits."""
    chosen: list[int] = []
    left = torch.zeros_like(product.logits)
    for one in shares.argsort(descending=True).tolist():
        if weights[one] <= 0:
            break
        chosen.append(one)
        left += product.logits @ product.group.projector(product.group.representations[one])
        kept = float((left.argmax(1) == product.answers).double().mean())
        if kept >= KEPT:
            return chosen, kept
    return [], 0.0


def _spectrum(subject: Subject, product: Product, chosen: list[int], shares: Tensor, kept: float) -> Spectrum:
    group, label = product.group, product.left
    onto = [group.projector(one)[label][:, label] for one in group.representations]
    W_E = subject.model.embed.W_E[product.pairs.elements].double()
    W_E = W_E - W_E.mean(0)
    power = torch.stack([(one @ W_E).square().sum() for one in onto]) / W_E.square().sum()
    largest = set(power.argsort(descending=True)[: len(chosen)].tolist()) == set(chosen)
    inside = torch.stack([onto[one] for one in chosen]).sum(0)
    constant = torch.full_like(inside, 1 / group.size)
    alone, removed = (
        _right(subject, product, projection) for projection in (inside + constant, torch.eye(group.size).double() - inside)
    )
    names = tuple(group.representations[one].name for one in chosen)
    return Spectrum(
        group.size, group.exponents is not None, names, tuple(power[chosen].tolist()), tuple(shares[chosen].tolist()), largest,
        kept, alone, removed, float(shares[chosen].sum()),
    )  # fmt: skip


def _right(subject: Subject, product: Product, projection: Float[Tensor, "element element"]) -> float:
    """How many products are right with a projection of the elements' embeddings in their place."""
    W_E, elements = subject.model.embed.W_E, product.pairs.elements
    before = W_E[elements].clone()
    try:
        W_E[elements] = (projection @ before.double()).to(W_E.dtype)
        answers = subject.logits(product.pairs.tokens)[:, product.pairs.at].argmax(-1)
    finally:
        W_E[elements] = before
    return float((answers == elements[product.expected]).double().mean())


# The program.


def _votes(product: Product, weights: dict[int, float], setting: Setting) -> Proposal:
    """Products of the representations' entries of both elements, and their sums as votes for each token."""
    group, elements = product.group, product.pairs.elements
    first, second, votes = [], [], []
    largest = max(weights.values())
    for number, weight in weights.items():
        one, factor = group.representations[number], round(weight / largest, 3) or 0.001
        made = _waves_of(int(one.name), product) if group.exponents is not None else _entries_of(one, product)
        first += made[0]
        second += made[1]
        votes += [factor * row for row in made[2]]
    lines = _places(product)
    of_token = torch.zeros(setting.d_vocab, dtype=torch.long)
    of_token[elements] = torch.arange(group.size)
    factors = []
    for line, columns, name in zip(lines, (first, second), ("left", "right"), strict=True):
        rows = torch.stack(columns, 1)[of_token]
        factors.append(Weigh(name, ((line.name, _table(rows)),), (0.0,) * len(columns)))
    rows = torch.zeros(len(votes), setting.d_answers, dtype=torch.float64)
    rows[:, elements] = torch.stack(votes)
    vote = Weigh("votes", (("products", _table(rows)),), (0.0,) * setting.d_answers)
    bits = 6 * CHOICE + sum(group.representations[one].matrices.shape[1] ** 2 * 32 for one in weights)
    bits += group.size * math.log2(group.size) * (group.exponents is None)
    return Proposal((*lines, *factors, Multiply("products", "left", "right"), vote), bits, numeric=True, votes=True)


def _places(product: Product) -> list[Line]:
    """The elements at the two places."""
    return [
        FIRST if place == 0 else Attend(f"at_{place}", Selector((Term("among", "positions", values=(place,)), LATEST)), "tokens")
        for place in product.pairs.places
    ]


def _waves_of(k: int, product: Product) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Four products of cosines and sines; the first two make cos(w(a + b)), the others sin(w(a + b))."""
    exponents = product.group.exponents
    assert exponents is not None
    cosines, sines = ([], [], []), ([], [], [])  # type: ignore[var-annotated]
    for number, labels in enumerate((exponents[product.left], exponents[product.right], exponents)):
        angles = [2 * math.pi * k * at / len(exponents) for at in labels.tolist()]
        for kept, function in ((cosines, math.cos), (sines, math.sin)):
            kept[number].append(torch.tensor([function(angle) for angle in angles], dtype=torch.float64))
    (a,), (b,), (c,) = cosines
    (x,), (y,), (z,) = sines
    return [a, x, a, x], [b, y, y, b], [c, -c, z, z]


def _entries_of(one: Representation, product: Product) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """ρ(a)[i, j], ρ(b)[j, k] and ρ(c)[i, k] for all i, j, k: the trace of ρ(a)ρ(b)ρ(c)^-1 is the sum of their products."""
    d = one.matrices.shape[1]
    places = [(i, j, k) for i in range(d) for j in range(d) for k in range(d)]
    a, b, c = one.matrices[product.left], one.matrices[product.right], one.matrices
    return [a[:, i, j] for i, j, _ in places], [b[:, j, k] for _, j, k in places], [c[:, i, k] for i, _, k in places]


def _table(rows: Tensor) -> Table:
    return tuple(tuple(row) for row in rows.tolist())
