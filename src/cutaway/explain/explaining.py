"""From a trained model and examples of its task to a program, its tests, and a verdict."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import ExplainError
from cutaway.explain.fitting import ANSWER, Fit, batch_of, fit, kinds_of, tree_answers, values, variables
from cutaway.explain.mechanisms import Proposal, Setting
from cutaway.explain.parts import NodeRoles, parts_of
from cutaway.explain.ranging import Far, enumerated, far_inputs, is_whole, short_inputs
from cutaway.explain.spectrum import Spectrum
from cutaway.explain.subject import InputSet, Subject
from cutaway.explain.substitution import Exchange, Node, NodeSet, Scrubbed, localise, name_of, scrub
from cutaway.explain.tree import Leaf, Split, Tree
from cutaway.explain.verdict import LEAST, Verdict, agreement, interval, judge
from cutaway.numbers_given import options
from cutaway.programs.language import Attend, Line, Map, Program
from cutaway.prompts import Prompts, join

FITTED, SUBSTITUTED = 800, 300  # sequences
DRAWS = 400
ENOUGH = LEAST + 0.02  # of S, for a way of exchanging to be the last that is tried
MATTERS_ALONE = 0.05  # of the loss that exchanging all nodes at random costs
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Explanation:
    """A program, what it stands for in the model, its tests, and the verdict.

    Args:
        program: what the model does.
        graph: the nodes that carry the answers.
        scrubbed: what exchanging activations did.
        scrubbing: how activations were exchanged: which nodes together, and whether among places with the same token.
        alone: where that does not keep the answers, S of each node of the graph exchanged by itself; else nothing.
        far: how program and model agree on longer and rarer inputs.
        parts: positions that are an exception, and heads by token.
    """

    name: str
    fitted: Fit
    graph: NodeSet
    scrubbed: Scrubbed
    scrubbing: str
    alone: dict[Node, float]
    verdict: Verdict
    far: Far | None
    parts: NodeRoles

    @property
    def program(self) -> Program:
        """The program."""
        return self.fitted.program

    @property
    def spectrum(self) -> Spectrum | None:
        """Of products of a group (sums modulo a number), the representations (frequencies) that carry them."""
        return self.fitted.spectrum


@options(seed=0)
def explain(
    model: Any, examples: Prompts, test: Prompts | None = None, *, name: str = "explanation", seed: int = 0,
    several: bool | None = None, progress: Progress = lambda _: None,
) -> Explanation:  # fmt: skip
    """Explain what a small trained model does on the inputs of its task, as a program that is tested inside the model.

    Args:
        model: a network; where answers are all tokens above 0, load it with `center_unembed=False`, which shifts logits.
        examples: inputs with their right answers. A quarter of them is kept for testing where there is no `test`.
        several: read all tokens with a logit above 0 as the answer; by default as the examples' answers are.
        progress: called with what is being done.

    Raises:
        ExplainError: too large a model, examples without answers, or too few of them.
    """
    if len(examples) < 20:
        raise ExplainError(f"{len(examples)} examples are too few to fit and to test a program; give at least 20")
    if test is not None and not (test.right and bool(test.answered.any())):
        raise ExplainError("the test examples have no answers: each line needs 'answers': {position: token or [tokens]}")
    subject = Subject(model, examples, several=several)
    every = enumerated(examples, most=SUBSTITUTED)
    examples, test = (examples, every) if every is not None else _split(examples, test, seed)
    progress("running the model")
    known, unseen = subject.answered(examples[:FITTED]), subject.answered(test)
    progress("fitting a program")
    fitted = fit(subject, with_short(subject, known), name, examples=known)
    part = subject.answered(test[:SUBSTITUTED])
    exchange = Exchange(subject, part, seed)
    progress("finding the nodes that carry the answers")
    graph = localise(exchange)
    progress("exchanging activations")
    scrubbed, way = best_scrub(fitted, subject, part, graph, exchange)
    alone = {} if scrubbed.recovered() >= ENOUGH else held_alone(fitted, subject, part, graph, exchange, way)
    progress("controls")
    controls = controls_of(fitted, subject, unseen, exchange, graph, seed)
    progress("other inputs")
    far = far_inputs(fitted, subject, examples, seed)
    verdict = verdict_of(
        fitted, subject, known, unseen, graph, scrubbed, controls, seed, weakest(graph, alone),
        _notes(unseen, way, scrubbed, alone, far),
    )  # fmt: skip
    return Explanation(name, fitted, graph, scrubbed, str(way), alone, verdict, far, parts_of(fitted, exchange))


def with_short(subject: Subject, known: InputSet) -> InputSet:
    """Inputs to fit a program to: the examples, and all short inputs where any tokens make one."""
    short = short_inputs(known.prompts)
    return known if short is None else subject.answered(join([known.prompts, short]))


def _split(examples: Prompts, test: Prompts | None, seed: int) -> tuple[Prompts, Prompts]:
    """Examples in random order, and those for testing."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    if test is not None:
        return examples[order], test
    cut = max(len(order) // 4, 5)
    return examples[order[cut:]], examples[order[:cut]]


@dataclass(frozen=True)
class Way:
    """How activations are exchanged.

    Args:
        early: nodes of earlier layers may hold what is read at the end.
        together: the heads of a layer have one partner.
        own: what partners share beside the program's variables: nothing, their `tokens` or their `positions`.
    """

    early: bool
    together: bool
    own: str

    def __str__(self) -> str:
        among = {"": "", "tokens": ", among places with the same token", "positions": ", at the same position"}
        nodes = "the heads of a layer together" if self.together else "each node by itself"
        return nodes + among[self.own] + ", what is read at the end held in every layer" * self.early


def best_scrub(fitted: Fit, subject: Subject, part: InputSet, graph: NodeSet, exchange: Exchange) -> tuple[Scrubbed, Way]:
    """The strictest way of exchanging that keeps the answers, or the best of them.

    Strictest first: each head by itself, among all places that the program calls equal; then among those that also hold the
    same token, or stand at the same position; then the heads of a layer together. Where the graph has nodes before the last
    layer, all of these again with what is read at the end held in earlier layers, too.
    """
    found = []
    last = max((layer for layer, _ in exchange.nodes), default=0)
    deep = any(layer < last for layer, _ in graph.inside)
    for early, together, own in itertools.product((False, True)[: 1 + deep], (False, True), ("", "tokens", "positions")):
        scrubbed = scrub(fitted, subject, part, graph.inside, exchange, together=together, own=own, early=early)
        if scrubbed.recovered() >= ENOUGH:
            return scrubbed, Way(early, together, own)
        found.append((scrubbed.recovered(), scrubbed, Way(early, together, own)))
    return max(found, key=lambda one: one[0])[1:]


def held_alone(
    fitted: Fit, subject: Subject, part: InputSet, graph: NodeSet, exchange: Exchange, way: Way
) -> dict[Node, float]:  # fmt: skip
    """How well the answers are kept where one node alone is exchanged: which nodes hold the program's variables?"""
    nodes = sorted(graph.inside, key=name_of)
    return {node: scrub(fitted, subject, part, (node,), exchange, own=way.own, early=way.early).recovered() for node in nodes}


def weakest(graph: NodeSet, alone: dict[Node, float]) -> tuple[str, float] | None:
    """The node that keeps least when it is exchanged by itself, of those that matter by themselves."""
    least = MATTERS_ALONE * float((graph.destroyed - graph.clean).mean())
    kept = {name_of(node): share for node, share in alone.items() if graph.effects[node] >= least}
    return min(kept.items(), key=lambda one: one[1], default=None)


def verdict_of(
    fitted: Fit, subject: Subject, known: InputSet, unseen: InputSet, graph: NodeSet, scrubbed: Scrubbed,
    controls: dict[str, float], seed: int, weak: tuple[str, float] | None, notes: tuple[str, ...],
) -> Verdict:  # fmt: skip
    """The three scores with intervals over sequences, and what they allow to be said."""
    generator = torch.Generator().manual_seed(seed + 1)
    answers, counted = tree_answers(fitted, unseen), unseen.counted
    model_says, sets = unseen.answers[counted], subject.set_table()
    rows = counted.nonzero()[:, 0]
    places = [(rows == row).nonzero().flatten() for row in range(len(counted))]

    def sample(count: int) -> Tensor:
        return torch.randint(0, count, (count,), generator=generator)

    matches = []
    for _ in range(DRAWS // 4):
        items = torch.cat([places[row] for row in sample(len(places)).tolist()])
        matches.append(agreement(model_says[items], answers[items], sets))
    size = len(scrubbed.clean)
    several = [sample(size) for _ in range(DRAWS)]
    whole = is_whole(unseen.prompts)
    match = interval(agreement(model_says, answers, sets), torch.tensor(matches, dtype=torch.float64), len(places), whole=whole)
    recovered = interval(
        min(scrubbed.recovered(), 1.0),
        torch.tensor([min(scrubbed.recovered(one), 1.0) for one in several], dtype=torch.float64),
        size,
        whole=whole,
    )
    shares = torch.tensor([min(graph.share(one), 1.0) for one in several], dtype=torch.float64)
    inside = interval(min(graph.share(), 1.0), shares, size, whole=whole)
    accuracy = subject.accuracy(known)
    return judge(match, recovered, inside, controls, fitted.bits, float(subject.bits), accuracy, weakest=weak, notes=notes)


# Controls.


def controls_of(
    fitted: Fit, subject: Subject, unseen: InputSet, exchange: Exchange, graph: NodeSet, seed: int
) -> dict[str, float]:  # fmt: skip
    """How well the same tests come out where they should not: each at most 0.2 if the tests mean something."""
    generator = torch.Generator().manual_seed(seed + 2)
    says = unseen.answers[unseen.counted]
    sets = subject.set_table()
    found = {}
    shuffled = [agreement(says, _shuffled(tree_answers(fitted, unseen), subject, generator), sets) for _ in range(10)]
    found["shuffled tables"] = sorted(shuffled)[len(shuffled) // 2]
    others = [agreement(says, tree_answers(_other(fitted, subject, unseen, generator), unseen), sets) for _ in range(21)]
    found["another program"] = sorted(others)[len(others) // 2]
    if 2 * len(graph.inside) <= len(exchange.nodes):  # of most of the nodes, random sets are the graph
        random_graphs = [localise_at_random(exchange, graph, len(graph.inside)) for _ in range(5)]
        found["random graph"] = max(0.0, sorted(random_graphs)[len(random_graphs) // 2])
    again = [_on_shuffled_weights(fitted, subject, unseen, generator) for _ in range(3)]
    found["shuffled weights"] = max(0.0, sorted(again)[1])
    return found


def localise_at_random(exchange: Exchange, graph: NodeSet, size: int) -> float:
    """The share of the effect inside a random set of nodes that is not the graph's own."""
    for _ in range(8):
        found = localise(exchange, size=size)
        if set(found.inside) != set(graph.inside):
            return found.share()
    return 0.0


def _shuffled(answers: Tensor, subject: Subject, generator: torch.Generator) -> Tensor:
    """Answers with their meanings permuted, none of those given keeping its own."""
    there = answers.unique()
    count = len(subject.sets)
    if count < 2:
        return answers
    shift = 1 + int(torch.randint(0, count - 1, (), generator=generator))
    order = torch.randperm(count, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    meaning = order[(place[there] + shift) % count]
    return meaning[torch.searchsorted(there, answers)]


def _other(fitted: Fit, subject: Subject, part: InputSet, generator: torch.Generator) -> Fit:
    """A program of the same form that reads other variables, drawn from the proposals of other kinds."""
    used = set().union(*(relations(one) for one in variables(fitted.tree)))
    others = [one for one in fitted.proposals if not relations(one) & used]
    sources = [one for one in others if one.answers and not one.numeric]
    askable = [one for one in others if not one.answers]
    batch = batch_of(fitted.setting, part)

    def pick(options: list[Proposal]) -> Proposal:
        return options[int(torch.randint(0, len(options), (), generator=generator))]

    codes = [one for one in others if not one.numeric and one.lines]

    def leaf(of: Proposal | None) -> Proposal | None:
        if of is None:
            return None
        last = of.lines[-1] if of.lines else None
        if isinstance(last, Map) and last.name == ANSWER and codes:
            return _with_inputs(last, [pick(codes) for _ in last.inputs], of, fitted.setting)
        return pick(sources) if sources else of

    def swapped(node: Tree) -> Tree:
        if isinstance(node, Leaf):
            return Leaf(node.constant, leaf(node.variable), node.bits)
        of = pick(askable) if askable else node.test.variable
        column = values(batch, fitted.setting, of)[part.counted]
        value = float(column[int(torch.randint(0, len(column), (), generator=generator))])
        return Split(replace(node.test, variable=of, value=value), swapped(node.yes), swapped(node.no))

    tree = swapped(fitted.tree)
    if isinstance(tree, Leaf) and tree.variable is None and len(subject.sets) > 1:
        constant = int(torch.randint(1, len(subject.sets), (), generator=generator))
        tree = Leaf(((tree.constant or 0) + constant) % len(subject.sets))
    return Fit(fitted.setting, fitted.proposals, tree, fitted.program, fitted.bits)


def _with_inputs(table: Map, others: list[Proposal], of: Proposal, setting: Setting) -> Proposal:
    """The same table over other variables, their values wrapped to the number of values that it has places for."""
    sizes = kinds_of(setting, of.lines)
    lines: dict[str, Line] = {}
    inputs = []
    for number, (name, other) in enumerate(zip(table.inputs, others, strict=True)):
        lines |= {line.name: line for line in other.lines}
        size, there = sizes[name].size, kinds_of(setting, other.lines)[other.name].size
        wrapped = Map(f"other_{number}", (other.name,), tuple(value % size for value in range(there)), size)
        lines[wrapped.name] = wrapped
        inputs.append(wrapped.name)
    swapped = replace(table, name="other_answer", inputs=tuple(inputs))
    return Proposal((*lines.values(), swapped), of.bits, answers=True)


def relations(one: Proposal) -> set[str]:
    """By which relations a variable's heads select, and of what they take means; a variable without heads by its name."""
    found: set[str] = set()
    for line in one.lines:
        if isinstance(line, Attend):
            found |= {term.relation for term in line.select.terms if term.key == "tokens" or term.relation == "offset"} or {
                line.how
            }
    return found - {"among"} or {one.name}


def _on_shuffled_weights(fitted: Fit, subject: Subject, unseen: InputSet, generator: torch.Generator) -> float:
    """The whole pipeline's smallest score on a model whose weights were shuffled, its accuracy at the task among them."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for parameter in model.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    prompts = unseen.prompts[:200]
    other = Subject(model, prompts, several=subject.several)
    answers = other.answered(prompts)
    right = (other.right(prompts) if subject.several else unseen.answers[:200])[answers.counted]
    sets = other.set_table()
    does_it = agreement(right, answers.answers[answers.counted], sets)
    if does_it <= 0.2:
        return does_it
    again = fit(other, answers)
    return min(does_it, agreement(answers.answers[answers.counted], tree_answers(again, answers), sets))


def _notes(unseen: InputSet, way: Way, scrubbed: Scrubbed, alone: dict[Node, float], far: Far | None) -> tuple[str, ...]:
    """What a reader should know beside the scores."""
    notes = [f"all {len(unseen.prompts):,} inputs of the examples' form were tested"] if is_whole(unseen.prompts) else []
    notes.append(f"activations were exchanged with {way}")
    if alone:
        notes.append("exchanged alone, S is " + ", ".join(f"{share:.2f} for {name_of(node)}" for node, share in alone.items()))
    little = {name_of(node): share for node, share in scrubbed.tested.items() if share < 0.5}
    if little:
        notes.append("few places had an equal in another input: " + ", ".join(f"{n} {s:.0%}" for n, s in little.items()))
    if far is not None:
        notes.append(far.sentence())
    return tuple(notes)
