"""Inputs beyond the examples: longer and rarer ones, made from the examples' own form; do program and model still agree?

Where an answer is the next token, inputs are begun like the examples' and go on as the program says, so that they are what
the task's own continuation would be if the program is right. Else each position is drawn from what the examples have there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.explain.fitting import Fit, tree_answers
from cutaway.explain.subject import InputSet, Subject
from cutaway.explain.verdict import agreement
from cutaway.prompts import Prompts

COUNT = 64
HOLDS = 0.98
LONGEST = 160  # tokens
SHORT = 400  # of short inputs, at most


@dataclass(frozen=True)
class Far:
    """How program and model agree on inputs beyond the examples.

    Args:
        longest: the longest of the examples; `lengths` the range of the far inputs.
        agreement: corrected for chance, over the far inputs.
        holds_to: the length up to which at least 99% of answers agree; None where they agree to the end.
    """

    kind: str
    longest: int
    lengths: tuple[int, int]
    agreement: float
    holds_to: int | None

    def sentence(self) -> str:
        """What it means, in words."""
        low, high = self.lengths
        length = f"{low}" if low == high else f"{low} to {high}"
        text = f"on {self.kind}, {length} tokens long (the examples have up to {self.longest}), "
        text += f"the agreement is {self.agreement:.2f}"
        if self.holds_to is not None and self.agreement < HOLDS:
            text += f": the model departs from the program after about {self.holds_to} tokens and does not generalise beyond"
        return text


def far_inputs(fitted: Fit, subject: Subject, examples: Prompts, seed: int) -> Far | None:
    """Longer or rarer inputs, and how program and model agree on them; None where none can be made."""
    generator = torch.Generator().manual_seed(seed + 3)
    made: Prompts | None
    next_tokens = _is_next_token(examples)
    longest = int(examples.lengths.max())
    most = min(subject.cfg.n_ctx, LONGEST)
    if next_tokens and not subject.several:
        made = _continued(fitted, examples, most, generator)
        kind = "inputs that go on as the program says"
    elif subject.several:
        made, kind = _walked(fitted, subject, examples, most, generator), "longer words that the program allows"
    elif fitted.setting.length is not None:
        made, kind = _resampled(examples, generator), "inputs drawn anew, position by position"
    else:
        return None
    if made is None:
        return None
    part = subject.answered(made)
    says, answers = part.answers[part.counted], tree_answers(fitted, part)
    same = torch.zeros_like(part.counted)
    same[part.counted] = says == answers
    holds_to = None
    for length in range(2, made.tokens.shape[1]):
        beyond = part.counted & (torch.arange(made.tokens.shape[1]) >= length)
        if bool(beyond.any()) and float(same[beyond].double().mean()) < 0.9:
            before = part.counted & (torch.arange(made.tokens.shape[1]) < length)
            if not bool(before.any()) or float(same[before].double().mean()) >= 0.99:
                holds_to = length
    return Far(
        kind, longest, (int(made.lengths.min()), int(made.lengths.max())), agreement(says, answers, subject.set_table()), holds_to
    )


def enumerated(examples: Prompts, *, most: int = 200_000) -> Prompts | None:
    """All inputs of the examples' form, where they have one length and are at most so many; each place has what it had there."""
    options = _options(examples)
    if options is None or math.prod(len(one) for one in options) > most:
        return None
    tokens = torch.cartesian_prod(*options).view(-1, len(options))
    right = (examples.right[0],) * len(tokens)
    return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), right=right, several=examples.several)


def is_whole(part: Prompts) -> bool:
    """Whether these are all inputs of their own form."""
    options = _options(part)
    return options is not None and math.prod(len(one) for one in options) == len(part.tokens.unique(dim=0))


def short_inputs(examples: Prompts, *, most: int = SHORT) -> Prompts | None:
    """All inputs up to a length, where the examples show that every token can stand everywhere: programs fail on rare ones.

    Their answers are placeholders at the places at which the examples have theirs: everywhere, or at the end.
    """
    counted, mask, lengths = examples.answered, examples.mask, examples.lengths
    last = torch.arange(mask.shape[1]) == lengths[:, None] - 1
    everywhere = torch.equal(counted, mask)
    if len(lengths.unique()) < 3 or not (everywhere or torch.equal(counted, last)):
        return None
    begins = examples.tokens[:, 0].unique().tolist()
    begins = begins if len(begins) == 1 else []
    letters = examples.tokens[:, len(begins) :][mask[:, len(begins) :]].unique().tolist()
    shortest = max(int(lengths.min()), len(begins) + 1)
    alike = {tuple(row[:shortest]) for row in examples.tokens[lengths == shortest].tolist()}
    if len(letters) < 2 or len(alike) != len(letters) ** (shortest - len(begins)) or not _in_any_order(examples, letters, begins):
        return None
    rows: list[list[int]] = [begins] if begins and everywhere else []
    for length in itertools.count(shortest - len(begins)):
        if len(rows) + len(letters) ** length > most or len(begins) + length > mask.shape[1]:
            break
        rows += [[*begins, *tail] for tail in itertools.product(letters, repeat=length)]
    right = tuple(dict.fromkeys(range(0 if everywhere else len(row) - 1, len(row)), (0,)) for row in rows)
    return Prompts.of_rows(rows, right=right) if rows else None


def _in_any_order(examples: Prompts, letters: list[int], begins: list[int]) -> bool:
    """Whether each letter was seen after each, and at the end."""
    pairs, ends = set(), set()
    for row, length in zip(examples.tokens.tolist(), examples.lengths.tolist(), strict=True):
        inner = row[len(begins) : length]
        pairs |= set(itertools.pairwise(inner))
        ends |= set(inner[-1:])
    return len(pairs) == len(letters) ** 2 and ends == set(letters)


def _options(examples: Prompts) -> list[Tensor] | None:
    """The tokens that each place of inputs of one length has."""
    return None if len(examples.lengths.unique()) > 1 else [column.unique() for column in examples.tokens.T]


def _is_next_token(examples: Prompts) -> bool:
    """Whether answers are the tokens that come next, and go on to the end."""
    counted, labels = examples.answered, examples.labels
    inside = counted[:, :-1] & examples.mask[:, 1:]
    return bool(inside.any()) and bool((labels[:, :-1] == examples.tokens[:, 1:])[inside].all())


def _prefixes(examples: Prompts) -> list[list[int]]:
    """The tokens up to the first answer of each example, that position among them."""
    first = examples.answered.long().argmax(1).tolist()
    return [row[: at + 1] for row, at in zip(examples.tokens.tolist(), first, strict=True)]


@dataclass(frozen=True)
class Form:
    """What prefixes of the examples are like: which places hold content, whether tokens repeat, ascend, vary in number."""

    prefixes: list[list[int]]
    content: list[int]
    repeats: bool
    ascends: bool
    varies: bool

    @classmethod
    def of(cls, prefixes: list[list[int]], content: list[int]) -> Form:
        """The form of these prefixes."""
        inner = [[token for token in prefix if token in content] for prefix in prefixes[:200]]
        return cls(
            prefixes,
            content,
            repeats=any(len(set(row)) < len(row) for row in inner),
            ascends=all(row == sorted(row) for row in inner) and any(len(row) > 1 for row in inner),
            varies=len(set(map(len, prefixes))) > 1,
        )

    def draw(self, most: int, generator: torch.Generator) -> list[int]:
        """A prefix of this form: where numbers of tokens vary, a longer one; else other tokens at the same places."""
        shape = self.prefixes[int(torch.randint(0, len(self.prefixes), (), generator=generator))]
        places = [place for place, token in enumerate(shape) if token in self.content]
        if not places:
            return list(shape)
        count = min(2 * len(places) + 8, (most - 4) // 2) if self.varies else len(places)
        count = count if self.repeats else min(count, len(self.content))
        picks = (
            torch.randint(0, len(self.content), (count,), generator=generator)
            if self.repeats
            else torch.randperm(len(self.content), generator=generator)[:count]
        )
        sampled = [self.content[n] for n in picks.tolist()]
        sampled = sorted(sampled) if self.ascends else sampled
        if self.varies:
            return [*shape[: places[0]], *sampled, *shape[places[-1] + 1 :]]
        given = dict(zip(places, sampled, strict=False))
        return [given.get(place, token) for place, token in enumerate(shape)]


def _continued(fitted: Fit, examples: Prompts, most: int, generator: torch.Generator) -> Prompts:
    """Prefixes of the examples' form, continued by the program itself until it says what ends the examples."""
    form = Form.of(_prefixes(examples), sorted(fitted.setting.content))
    rows = [form.draw(most, generator) for _ in range(COUNT)]
    starts = [len(row) - 1 for row in rows]
    ends = set(examples.tokens.gather(1, (examples.lengths - 1)[:, None])[:, 0].tolist())
    running = [row for row in rows if len(row) < most]
    while running:
        prompts = Prompts.of_rows(running, right=tuple({len(row) - 1: (0,)} for row in running))
        answers = tree_answers(fitted, _inputs_of(prompts)).tolist()
        going_on = []
        for row, token in zip(running, answers, strict=True):
            if token not in ends and token < fitted.setting.d_vocab:
                row.append(token)
                going_on.append(row)
        running = [row for row in going_on if len(row) < most]
    right = tuple(dict.fromkeys(range(start, len(row)), (0,)) for start, row in zip(starts, rows, strict=True))
    return Prompts.of_rows(rows, right=right)


def _inputs_of(prompts: Prompts) -> InputSet:
    """A part with places to answer and no answers of the model."""
    return InputSet(prompts, torch.zeros_like(prompts.tokens))


def _walked(fitted: Fit, subject: Subject, examples: Prompts, most: int, generator: torch.Generator) -> Prompts | None:
    """Words that go on with a token that the program allows, never with one that ends them."""
    start = int(examples.tokens[0, 0])
    ends = {int(row[length - 1]) for row, length in zip(examples.tokens, examples.lengths.tolist(), strict=True)}
    rows = [[start] for _ in range(COUNT)]
    for _ in range(most - 1):
        prompts = Prompts.of_rows(rows, right=tuple({len(row) - 1: (0,)} for row in rows))
        for row, number in zip(rows, tree_answers(fitted, _inputs_of(prompts)).tolist(), strict=True):
            options = [token for token in subject.sets[number] if token not in ends] or [start]
            row.append(options[int(torch.randint(0, len(options), (), generator=generator))])
    return Prompts.of_rows(rows, right=tuple(dict.fromkeys(range(len(row)), (0,)) for row in rows), several=True)


def _resampled(examples: Prompts, generator: torch.Generator) -> Prompts:
    """Each position drawn from what the examples have there."""
    tokens = torch.stack(
        [column[torch.randint(0, len(column), (4 * COUNT,), generator=generator)] for column in examples.tokens.T], 1
    )
    right = tuple(examples.right[0] for _ in range(len(tokens)))
    return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), right=right, several=examples.several)
