"""From a subject to a program: proposals are evaluated on its inputs, a tree is fitted to its answers and written as lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cutaway.explain.batched import Batch
from cutaway.explain.choosing import chosen
from cutaway.explain.determining import Determined, determine
from cutaway.explain.layouts import layout_proposals
from cutaway.explain.mechanisms import Proposal, Setting, elections, proposals
from cutaway.explain.nodes import node_proposals
from cutaway.explain.occurring import telling
from cutaway.explain.peeling import Target, peeled
from cutaway.explain.spectrum import Spectrum, product_of, product_table, traces
from cutaway.explain.subject import InputSet, Subject
from cutaway.explain.tree import Grower, Leaf, Split, Test, Tree, answers, leaves, pruned, tests, tree_bits
from cutaway.programs.language import Bucket, Kind, Line, Map, Program, ReadOut, Table

ANSWER = "answer"  # the name of a table that gives the answer
DOES_IT = 0.9  # of the answers right, at least, for the examples to say what the rule is
DIGITS = 9  # numbers that agree to so many places are equal


@dataclass(frozen=True)
class Fit:
    """A fitted tree, and the program that it is; of products of a group, the representations that carry them."""

    setting: Setting
    proposals: list[Proposal]
    tree: Tree
    program: Program
    bits: float
    spectrum: Spectrum | None = None


def setting_of(subject: Subject, part: InputSet) -> Setting:
    """What proposals for these inputs depend on."""
    prompts, cfg = part.prompts, subject.cfg
    lengths = prompts.lengths.unique()
    there = set(prompts.tokens[prompts.mask].tolist())
    known = {token for number in part.answers[part.counted].unique().tolist() for token in subject.sets[number]}
    everywhere = {token for token in there if bool(((prompts.tokens == token) & prompts.mask).any(1).all())}
    known |= there - everywhere  # separators stand in every input
    return Setting(
        d_vocab=cfg.d_vocab,
        d_answers=cfg.d_vocab_out,
        length=int(lengths[0]) if len(lengths) == 1 else None,
        longest=int(lengths.max()),
        n_ctx=cfg.n_ctx,
        content=tuple(sorted(there & known)) or tuple(sorted(there)),
        causal=cfg.attention_dir == "causal",
        begins=len(prompts.tokens[:, 0].unique()) == 1,
    )


def batch_of(setting: Setting, part: InputSet) -> Batch:
    """The inputs, for evaluating lines on them."""
    prompts = part.prompts
    return Batch(prompts.tokens, prompts.mask, n_ctx=setting.n_ctx, d_vocab=setting.d_vocab, causal=setting.causal)


def kinds_of(setting: Setting, lines: tuple[Line, ...]) -> dict[str, Kind]:
    """The kinds of the variables that lines make."""
    names = tuple(map(str, range(setting.d_vocab)))
    return Program("lines", names, setting.n_ctx, lines, ReadOut((), (0.0,) * setting.d_vocab), causal=setting.causal).kinds


def values(batch: Batch, setting: Setting, one: Proposal) -> Tensor:
    """The values of a proposal at every position, `[batch, pos]`."""
    batch.add(one.lines, kinds_of(setting, one.lines))
    found = batch.values[one.name]
    if one.votes:
        return found.argmax(-1)
    return found[..., 0].mul(10.0**DIGITS).round().div(10.0**DIGITS) if found.ndim == 3 else found


def fit(subject: Subject, part: InputSet, name: str = "explanation", *, examples: InputSet | None = None) -> Fit:
    """The shortest program found for the model's answers on these inputs.

    Mistakes hide a rule, so where the model makes some on the `examples`, programs are fitted to the right answers, too; the
    one that takes fewer bits, with those for each of the model's answers that it gets wrong, is kept.
    """
    found = [_fit(subject, part, name)]
    if examples is not None and DOES_IT <= subject.accuracy(examples) < 1:
        found.append(_fit(subject, InputSet(examples.prompts, subject.right(examples.prompts).clamp(min=0)), name))
    return min(found, key=lambda one: one.bits + _missed_bits(one, subject, part)) if len(found) > 1 else found[0]


def _missed_bits(fitted: Fit, subject: Subject, part: InputSet) -> float:
    """Bits to correct the answers that a program gets wrong."""
    target = part.answers[part.counted]
    wrong = int((tree_answers(fitted, part) != target).sum())
    return wrong * (math.log2(max(len(subject.sets), 2)) + math.log2(max(len(target), 2)))


def _fit(subject: Subject, part: InputSet, name: str) -> Fit:
    """The shortest tree found for the answers of these inputs, as a program."""
    setting = setting_of(subject, part)
    batch, counted = batch_of(setting, part), part.counted
    product = product_of(subject, part)
    proposed = [*proposals(setting), *layout_proposals(subject, setting, part), *node_proposals(subject, setting, part)]
    if not subject.several:
        proposed += [*related(batch, setting, part), *existing(batch, setting, part, proposed)]
    if product is not None:
        proposed.append(product_table(product, setting))
    columns: dict[str, Int[Tensor, "item"]] = {one.name: values(batch, setting, one)[counted] for one in proposed}
    target = part.answers[counted]
    joint = joint_answer(subject, proposed, columns, target, setting)
    if subject.several:  # numbers of answers are numbers of sets: no variable of tokens is one
        proposed = [replace(one, answers=False) for one in proposed]
    if joint is not None and joint.name in columns:
        proposed = [replace(one, answers=one.answers or one.name == joint.name) for one in proposed]
    grower = Grower(proposed, columns, target, len(subject.sets))
    tree = pruned(grower.grow())
    if joint is not None and joint.name not in columns:  # a table that is always right, and may take more to say than the tree
        proposed.append(joint)
        columns[joint.name] = values(batch, setting, joint)[counted]
        tree = min(tree, Leaf(variable=joint, bits=3.0), key=grower.price)
    if grower.wrong(tree) and torch.equal(counted, part.prompts.mask) and not subject.several:
        tree = min((tree, *unpeeled(batch, proposed, columns, part, setting)), key=grower.price)
    if not subject.several:
        tree = min((tree, *elections_of(batch, setting, target, counted, columns)), key=grower.price)
    found = traces(subject, product, setting) if product is not None else None
    spectrum = None
    if found is not None:
        columns[found[0].name] = values(batch, setting, found[0])[counted]
        leaf = Leaf(variable=found[0], bits=3.0)
        if grower.wrong(leaf) <= grower.wrong(tree):  # its logits are such traces, so a shorter program is not what it does
            tree, spectrum = leaf, found[1]
    program = program_of(tree, subject, setting, part, name)
    return Fit(setting, proposed, tree, program, tree_bits(tree), spectrum)


def related(batch: Batch, setting: Setting, part: InputSet) -> Iterator[Proposal]:
    """Copies by a relation between tokens that the answers show."""

    def valued(line: Line) -> Int[Tensor, "item"]:
        found = values(batch, setting, Proposal((line,), 0.0))[part.counted]
        batch.forget(line.name)  # the next one has the same name
        return found

    return chosen(setting, part, valued)


def existing(batch: Batch, setting: Setting, part: InputSet, bank: list[Proposal]) -> list[Proposal]:
    """Existences that the answers show."""

    def size(one: Proposal) -> int:
        return kinds_of(setting, one.lines)[one.name].size

    return list(telling(setting, part, bank, lambda one: values(batch, setting, one), size))


def unpeeled(
    batch: Batch, proposed: list[Proposal], columns: dict[str, Tensor], part: InputSet, setting: Setting
) -> Iterator[Tree]:
    """Trees of one leaf whose last line was taken off the answers, with its values among the columns."""
    sizes = {one.name: kinds_of(setting, one.lines)[one.name].size for one in proposed if not one.numeric}

    def known(target: Int[Tensor, "item"], where: Bool[Tensor, "batch pos"]) -> Determined | None:
        there = {one.name: values(batch, setting, one)[where] for one in proposed}
        return determine(target, proposed, there, sizes)

    for one in peeled(Target(part.answers, part.counted, setting.d_answers), known, causal=setting.causal):
        columns[one.name] = values(batch, setting, one)[part.counted]
        yield Leaf(variable=one, bits=3.0)


def elections_of(
    batch: Batch, setting: Setting, target: Int[Tensor, "item"], counted: Bool[Tensor, "batch pos"], columns: dict[str, Tensor]
) -> Iterator[Tree]:
    """The best election of each kind, with its values among the columns."""
    best: dict[str, int] = {}
    kept: dict[str, Proposal] = {}
    for one in elections(setting):
        winners = values(batch, setting, one)[counted]
        right = int((winners == target).sum())
        if right > best.get(one.name, 0):
            best[one.name], kept[one.name], columns[one.name] = right, one, winners
        batch.forget(one.name)  # the next one has the same name
    yield from (Leaf(variable=one, bits=3.0) for one in kept.values())


def joint_answer(
    subject: Subject, proposed: list[Proposal], columns: dict[str, Tensor], target: Int[Tensor, "item"], setting: Setting
) -> Proposal | None:
    """The answer as a table over the few variables that determine it, if there are such."""
    sizes = {one.name: kinds_of(setting, one.lines)[one.name].size for one in proposed if not one.numeric}
    found = determine(target, proposed, columns, sizes)
    if found is None:
        return None
    return found.proposal(ANSWER, len(subject.sets) if subject.several else setting.d_answers, itself=not subject.several)


def tree_answers(fitted: Fit, part: InputSet) -> Int[Tensor, "item"]:
    """What a tree answers where something is to be answered."""
    batch = batch_of(fitted.setting, part)
    used = {one.name: one for one in variables(fitted.tree)}
    columns = {name: values(batch, fitted.setting, one)[part.counted] for name, one in used.items()}
    found = answers(fitted.tree, columns, int(part.counted.sum()))
    if fitted.program.read_out.kind == "above":
        return found
    return found.where(found < fitted.setting.d_answers, 0)  # a token that is no answer has no logit: a draw


def variables(tree: Tree) -> list[Proposal]:
    """The proposals that a tree uses."""
    used = [test.variable for test in tests(tree)] + [leaf.variable for leaf in leaves(tree) if leaf.variable is not None]
    return list({one.name: one for one in used}.values())


# The program of a tree.


def program_of(tree: Tree, subject: Subject, setting: Setting, part: InputSet, name: str) -> Program:
    """The tree as a program: a boolean for each test, one code for the leaf, and for each leaf what it answers."""
    lines: dict[str, Line] = {line.name: line for one in variables(tree) for line in one.lines}
    tested = list(dict.fromkeys(tests(tree)))
    booleans = {test: _boolean(test, setting, lines) for test in tested}
    ends = leaves(tree)
    width = setting.d_answers
    terms: list[tuple[str, Table]] = []
    if len(ends) > 1:
        where = _leaf_map(tree, ends, tested, booleans)
        lines[where.name] = where
        if subject.several:
            terms.append((where.name, tuple(_row(subject, leaf, width) for leaf in ends)))
        elif any(leaf.constant is not None for leaf in ends):
            constants = tuple(width if leaf.constant is None else leaf.constant for leaf in ends)
            lines["otherwise"] = Map("otherwise", (where.name,), constants, width + 1)
            terms.append(("otherwise", _tokens(width + 1, width)))
    for number, leaf in enumerate(ends):
        if leaf.variable is not None:
            terms.append(_answering(leaf.variable, number, len(ends), subject, setting, lines))
    bias = _row(subject, ends[0], width) if len(ends) == 1 else (0.0,) * width
    read = ReadOut(tuple(terms), bias, kind="above" if subject.several else "most likely", at=_places(part))
    names = tuple(map(str, range(setting.d_vocab)))
    outputs = None if width == setting.d_vocab else tuple(map(str, range(width)))
    return Program(name, names, setting.n_ctx, tuple(lines.values()), read, outputs=outputs, causal=setting.causal)


def _boolean(test: Test, setting: Setting, lines: dict[str, Line]) -> str:
    """The name of the boolean of a test; its line is added where it is not the variable itself."""
    of = test.variable
    if of.numeric:
        name = _free(f"{of.name}_reaches", lines)
        lines[name] = Bucket(name, of.name, (test.value,), max(test.gap, 1e-9))
        return name
    size = kinds_of(setting, of.lines)[of.name].size
    if size == 2 and test.value == 1:
        return of.name
    name = _free(f"{of.name}_is_{int(test.value)}", lines)
    lines[name] = Map(name, (of.name,), tuple(int(value == int(test.value)) for value in range(size)), 2)
    return name


def _free(name: str, lines: dict[str, Line]) -> str:
    name = re.sub(r"\W", "_", name)
    return next(one for one in (name, *(f"{name}_{n}" for n in range(2, 99))) if one not in lines)


def _leaf_map(tree: Tree, ends: list[Leaf], tested: list[Test], booleans: dict[Test, str]) -> Map:
    """Which leaf the booleans lead to."""
    numbers = {id(leaf): number for number, leaf in enumerate(ends)}

    def walk(node: Tree, outcomes: dict[Test, int]) -> int:
        return numbers[id(node)] if isinstance(node, Leaf) else walk(node.yes if outcomes[node.test] else node.no, outcomes)

    table = []
    for code in range(2 ** len(tested)):
        outcomes = {test: code >> (len(tested) - 1 - place) & 1 for place, test in enumerate(tested)}
        table.append(walk(tree, outcomes))
    return Map("case", tuple(booleans[test] for test in tested), tuple(table), len(ends))


def _row(subject: Subject, leaf: Leaf, width: int) -> tuple[float, ...]:
    """The logits of a leaf that answers a constant."""
    if leaf.constant is None:
        return (0.0,) * width
    chosen, off = subject.sets[leaf.constant], -1.0 if subject.several else 0.0
    return tuple(1.0 if token in chosen else off for token in range(width))


def _answering(
    of: Proposal, number: int, count: int, subject: Subject, setting: Setting, lines: dict[str, Line]
) -> tuple[str, Table]:
    """A term of the read-out that says a variable's value in its leaf: a token, or the number of a set of tokens."""
    size, width = kinds_of(setting, of.lines)[of.name].size, setting.d_answers
    if of.votes:
        return of.name, _tokens(width, width)
    if subject.several:
        answers = [_row(subject, Leaf(value), width) for value in range(size)]
    else:
        answers, size = [*_tokens(width, width)], min(size, width)
    nothing = (0.0,) * width
    if count == 1:
        values = kinds_of(setting, of.lines)[of.name].size
        return of.name, tuple(answers[value] if value < size else nothing for value in range(values))
    name = _free(f"then_{of.name}", lines)
    values = kinds_of(setting, of.lines)[of.name].size
    there = tuple(min(value, size) if case == number else size for case in range(count) for value in range(values))
    lines[name] = Map(name, ("case", of.name), there, size + 1)
    return name, (*answers[:size], nothing)


def _tokens(size: int, width: int) -> Table:
    """A table that gives each value below `width` its token."""
    return tuple(tuple(float(token == value) for token in range(width)) for value in range(size))


def _places(part: InputSet) -> str | tuple[int, ...] | None:
    """Where a program answers: at the end, at some tokens, or everywhere."""
    counted, prompts = part.counted, part.prompts
    if bool((counted.sum(1) == 1).all()) and torch.equal(counted.long().argmax(1), prompts.lengths - 1):
        return "last"
    inside, outside = (set(prompts.tokens[where].tolist()) for where in (counted, prompts.mask & ~counted))
    return tuple(sorted(inside)) if outside and not inside & outside else None


__all__ = ["Fit", "Split", "fit", "program_of", "setting_of", "tree_answers", "variables"]
