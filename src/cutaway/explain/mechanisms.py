"""Proposals: variables that attention heads and MLPs of small transformers are known to make, as lines of programs.

They are kinds of mechanisms, not tasks: what stood before, at a fixed place or at the mirrored one; the extreme key, also
beyond the query's own value; the successor of an earlier same token; counts, differences of counts and their signs; position
in its period; comparisons of two codes; sums of two codes modulo the number of answers. Each comes with its description
length in bits, and is evaluated on data when it is looked at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cutaway.programs.language import (
    Attend,
    Bucket,
    Line,
    Map,
    Multiply,
    Selector,
    Term,
    Weigh,
)

CHOICE = 6.0  # bits for one of the kinds of lines and terms
PLACES = 160  # positions of which pairs are tabulated
SMALL = 8  # a vocabulary whose tokens can be counted one by one


@dataclass(frozen=True)
class Proposal:
    """A variable: the lines that make it, what the last of them makes, and how long it takes to say.

    Args:
        answers: whether its values are tokens, so that it can be an answer itself.
        votes: its numbers are votes for tokens, of which the answer has most.
        named: without lines, `tokens` or `positions`.
    """

    lines: tuple[Line, ...]
    bits: float
    answers: bool = False
    numeric: bool = False
    named: str = "tokens"
    votes: bool = False

    @property
    def name(self) -> str:
        """The variable's name: that of its last line, or one of the two that are there from the start."""
        return self.lines[-1].name if self.lines else self.named


@dataclass(frozen=True)
class Setting:
    """What proposals depend on.

    Args:
        d_vocab, d_answers: how many tokens go in and how many answers there are.
        length: the length of all inputs, where it is one; None where it varies.
        longest: the longest input.
        content: the tokens that also are answers; the others (separators) are said one by one.
        causal: keys after the query are not visible.
        begins: every input begins with the same token; else counts have to take the first one in.
    """

    d_vocab: int
    d_answers: int
    length: int | None
    longest: int
    n_ctx: int
    content: tuple[int, ...]
    causal: bool
    begins: bool = True

    @property
    def token_bits(self) -> float:
        """Bits to name a token."""
        return math.log2(self.d_vocab)


TOKENS = Proposal((), 0.0, answers=True)


def elections(setting: Setting) -> Iterator[Proposal]:
    """Keys that vote for tokens: the most frequent token; the first one that is alone, which a repetition votes against."""
    size, width, places = setting.d_vocab, setting.d_answers, setting.n_ctx
    counted = tuple(tuple(float(a == b and a in setting.content) for b in range(width)) for a in range(size))
    yield Proposal((Attend("shares", Selector(()), "tokens", "mean", counted),), 2 * CHOICE, numeric=True, votes=True)
    if size * places > 2**11:
        return
    same = Term("equal", "tokens", "tokens")
    often = counting(setting, "often", same, first=first_is_same(setting))
    repeated = Map("repeated", ("often",), tuple(int(count > 1) for count in range(places)), 2)
    joint = tuple(itertools.product(range(size), range(2), range(places)))
    voter = Map("voter", ("tokens", "repeated", "positions"), tuple(range(len(joint))), len(joint))
    for otherwise in (None, *setting.content):
        letters = set(setting.content) - {otherwise}
        rows = []
        for token, again, place in joint:
            row = [0.0] * width
            if token in letters and token < width:
                row[token] = -1.0 if again else 1 - place / (2 * places)
            if otherwise is not None and otherwise < width:
                row[otherwise] += 1e-3  # every key's small vote for what is said where no token is alone
            rows.append(tuple(row))
        votes = Attend("votes", Selector(()), "voter", "mean", tuple(rows))
        yield Proposal((*often, repeated, voter, votes), 6 * CHOICE + 2 * setting.token_bits, numeric=True, votes=True)


def proposals(setting: Setting) -> list[Proposal]:
    """All proposals, shortest first; each name once."""
    codes = [TOKENS, *copies(setting)]
    found = [
        *codes,
        *ranked(setting),
        *periods(setting),
        *successors(setting, codes),
        *sums(setting, codes),
        *comparisons(setting, codes),
        *counts(setting),
        *remainders(setting),
        *interleaved(setting),
        *totals(setting),
        *open_brackets(setting),
        *uniques(setting),
        *existences(setting),
    ]
    named: dict[str, Proposal] = {}
    for one in sorted(found, key=lambda one: one.bits):
        named.setdefault(one.name, one)
    return list(named.values())


def _attend(name: str, *terms: Term, of: str = "tokens", bits: float = 0.0, before: Sequence[Line] = ()) -> Proposal:
    lines = (*before, Attend(name, Selector(terms), of))
    return Proposal(lines, CHOICE * (1 + len(terms)) + bits, answers=True)


FIRST = Attend("at_0", Selector((Term("among", "positions", values=(0,)),)), "tokens")
LATEST, EARLIEST = Term("largest", "positions"), Term("smallest", "positions")


def copies(setting: Setting) -> Iterator[Proposal]:
    """Tokens that a head copies from one key."""
    if setting.longest < 2:
        return
    for back in range(1, 4 if setting.causal else 2):
        yield _attend(f"back_{back}" if back > 1 else "previous", Term("offset", constant=back), bits=float(back))
    yield Proposal((FIRST,), CHOICE * 2, answers=True)
    fixed = setting.length if setting.length is not None and setting.length <= 16 else min(setting.longest, 3)
    for place in range(1, fixed):
        yield _attend(f"at_{place}", Term("among", "positions", values=(place,)), LATEST, bits=math.log2(fixed + 1))
    if not setting.causal:
        yield _attend("last", LATEST)
    if setting.length is not None and not setting.causal:
        yield _attend("mirrored", Term("mirror", constant=setting.length - 1), LATEST, bits=4.0)
    content = Term("among", "tokens", values=setting.content)
    some = setting.d_vocab - len(setting.content) > 0 and len(setting.content) > 1
    for only in (False, True) if some else (False,):
        terms, which = ((content,), "_content") if only else ((), "")
        more = float(setting.d_vocab - len(setting.content)) if only else 0.0
        for relation in ("largest", "smallest"):
            yield _attend(f"{relation}{which}", *terms, Term(relation, "tokens"), LATEST, bits=more)
        for name, table, order in beyond(setting.d_vocab):
            score = Term("table", "tokens", "tokens", table=table)
            yield _attend(f"{name}{which}", *terms, score, Term(order, "tokens"), LATEST, bits=more + 2)
    yield from induced(setting)


def beyond(size: int) -> Iterator[tuple[str, tuple[tuple[float, ...], ...], str]]:
    """Keys beyond the query's own value, and which of them is nearest."""
    numbers = range(size)
    larger = tuple(tuple(float(key > query) for key in numbers) for query in numbers)
    smaller = tuple(tuple(float(key < query) for key in numbers) for query in numbers)
    yield "next_larger", larger, "smallest"
    yield "next_smaller", smaller, "largest"


def ranked(setting: Setting) -> Iterator[Proposal]:
    """Where the extreme key stands, and what is extreme among the others: of the other places, or beyond its value."""
    if setting.n_ctx > PLACES or setting.longest < 2:
        return
    some = setting.d_vocab - len(setting.content) > 0
    among = (Term("among", "tokens", values=setting.content),) if some else ()
    bits = float(setting.d_vocab - len(setting.content))
    numbers, size = range(setting.d_vocab), setting.n_ctx
    elsewhere = tuple(tuple(float(key != place) for key in range(size)) for place in range(size))
    for relation, beyond_it in (("largest", "smaller"), ("smallest", "larger")):
        extreme, suffix = Term(relation, "tokens"), "_content" if some else ""
        for name, order in (("last", LATEST), ("first", EARLIEST)):
            yield _attend(f"place_of_{relation}_{name}", *among, extreme, order, of="positions", bits=bits)
        place = Attend(f"place_of_{relation}_last", Selector((*among, extreme, LATEST)), "positions")
        others = Term("table", "positions", place.name, table=elsewhere)
        yield _attend(f"second_{relation}", *among, others, extreme, LATEST, bits=2 * bits + 2 * CHOICE, before=(place,))
        value = Attend(f"{relation}{suffix}", Selector((*among, extreme, LATEST)), "tokens")
        rows = tuple(tuple(float((k < q) if relation == "largest" else (k > q)) for k in numbers) for q in numbers)
        rest = Term("table", "tokens", value.name, table=rows)
        yield _attend(
            f"next_{beyond_it}_than_{relation}", *among, rest, extreme, LATEST, bits=2 * bits + 2 * CHOICE, before=(value,)
        )


def induced(setting: Setting) -> Iterator[Proposal]:
    """What followed (or preceded) an earlier token that was the same."""
    if not setting.causal:
        return
    previous = Attend("previous", Selector((Term("offset", constant=1),)), "tokens")
    match = Term("equal", "previous", "tokens")
    for name, order in (("followed_last", LATEST), ("followed_first", EARLIEST)):
        yield _attend(name, match, order, before=(previous,), bits=2 * CHOICE)
    second = Attend("back_2", Selector((Term("offset", constant=2),)), "tokens")
    both = (match, Term("equal", "back_2", "previous"))
    for name, order in (("followed_pair_last", LATEST), ("followed_pair_first", EARLIEST)):
        yield _attend(name, *both, order, before=(previous, second), bits=3 * CHOICE)
    yield from _by_place(setting)
    same = Term("equal", "tokens", "tokens")
    yield _attend("preceded_first", same, EARLIEST, of="previous", before=(previous,), bits=2 * CHOICE)


def _by_place(setting: Setting) -> Iterator[Proposal]:
    """What stands as far behind the start as the query behind a separator, or as far before the separator."""
    size = setting.n_ctx
    outside = [token for token in range(setting.d_vocab) if token not in setting.content]
    if size > PLACES or len(outside) > SMALL:
        return
    for separator in outside:
        chosen = Selector((Term("among", "tokens", values=(separator,)), LATEST))
        start = Attend(f"place_of_{separator}", chosen, "positions")
        copied = tuple(max(at - first, 0) for at in range(size) for first in range(size))
        mirrored = tuple(min(max(2 * first - at, 0), size - 1) for at in range(size) for first in range(size))
        for name, table, shift in ((f"copied_{separator}", copied, 1), (f"reversed_{separator}", mirrored, -1)):
            where = Map(f"place_{name}", ("positions", start.name), table, size)
            at = Term("equal", "positions", where.name, shift)
            yield _attend(name, at, LATEST, before=(start, where), bits=3 * CHOICE + setting.token_bits)


def periods(setting: Setting) -> Iterator[Proposal]:
    """The position, modulo small numbers and as a number."""
    for period in (2, 3, 4, 5):
        if period < setting.longest:
            table = tuple(place % period for place in range(setting.n_ctx))
            yield Proposal((Map(f"position_mod_{period}", ("positions",), table, period),), CHOICE + 3.0)
    yield Proposal((numbered(setting),), CHOICE, numeric=True)


def numbered(setting: Setting) -> Line:
    """The position as a number, counted from 1."""
    return Weigh("place", (("positions", tuple((float(place + 1),) for place in range(setting.n_ctx))),), (0.0,))


def counting(setting: Setting, name: str, *terms: Term, first: Line | None = None) -> tuple[Line, ...]:
    """A count of keys. Where inputs begin with content, the first token is counted with the others if `first` holds."""
    selector = Selector(terms)
    if setting.begins or first is None:
        return (Attend(name, selector, how="count"),)
    later, size = Attend(f"{name}_later", selector, how="count"), setting.n_ctx
    table = tuple(min(count + also, size - 1) for count in range(size) for also in range(2))
    return later, FIRST, first, Map(name, (later.name, first.name), table, size)


def first_is_same(setting: Setting) -> Line:
    """Whether the first token is the query's."""
    tokens = range(setting.d_vocab)
    return Map("first_is_same", ("tokens", FIRST.name), tuple(int(a == b) for a in tokens for b in tokens), 2)


def first_is(setting: Setting, token: int) -> Line:
    """Whether the first token is this one."""
    return Map(f"first_is_{token}", (FIRST.name,), tuple(int(other == token) for other in range(setting.d_vocab)), 2)


def successors(setting: Setting, codes: Sequence[Proposal]) -> Iterator[Proposal]:
    """A code plus or minus one, where that is a token."""
    size = setting.d_vocab
    for code in codes[:6]:
        for name, step in (("after", 1), ("before", -1)):
            table = tuple((value + step) % size for value in range(size))
            yield Proposal((*code.lines, Map(f"{name}_{code.name}", (code.name,), table, size)), code.bits + CHOICE, answers=True)


def sums(setting: Setting, codes: Sequence[Proposal]) -> Iterator[Proposal]:
    """Sums and differences of two codes of fixed places, modulo the number of values or as they are."""
    if setting.length is None or setting.length > 16:
        return
    fixed = [code for code in codes if (code.name.startswith("at_") and code.name != "at_0") or code.name == "tokens"]
    places = [Proposal((FIRST,), CHOICE * 2, answers=True), *fixed]
    values = len(setting.content)
    if values < 2 or values > 2**8 or setting.content != tuple(range(values)):
        return
    inside = range(setting.d_vocab)
    kinds: list[tuple[str, int, Callable[[int, int], int]]] = [
        ("plus", values, lambda a, b: (a + b) % values),
        ("minus", values, lambda a, b: (a - b) % values),
        ("apart_from", setting.d_vocab, lambda a, b: abs(a - b)),
    ]
    if setting.d_answers > values:  # more answers than numbers, so a sum may be one of them itself
        kinds.append(("and", 2 * setting.d_vocab - 1, lambda a, b: a + b))
    for one, other in itertools.combinations(places, 2):
        for name, size, of in kinds:
            table = tuple(of(a, b) for a in inside for b in inside)
            lines = _joined(one.lines, other.lines)
            made = Map(f"{one.name}_{name}_{other.name}", (one.name, other.name), table, size)
            yield Proposal((*lines, made), one.bits + other.bits + CHOICE + math.log2(values), answers=True)


def comparisons(setting: Setting, codes: Sequence[Proposal]) -> Iterator[Proposal]:
    """Whether two codes are equal, or one is larger."""
    size = setting.d_vocab
    for one, other in itertools.combinations(codes, 2):
        both = _joined(one.lines, other.lines)
        for name, table in (
            ("is", tuple(int(a == b) for a in range(size) for b in range(size))),
            ("below", tuple(int(a < b) for a in range(size) for b in range(size))),
        ):
            made = Map(f"{one.name}_{name}_{other.name}", (one.name, other.name), table, 2)
            yield Proposal((*both, made), one.bits + other.bits + CHOICE + 1)


def counts(setting: Setting) -> Iterator[Proposal]:
    """Counts of tokens so far, and differences of two of them: the mean of a table, times the position."""
    if setting.d_vocab > SMALL:
        return
    numbers = range(setting.d_vocab)
    place = numbered(setting) if setting.causal else None
    tables = {f"count_{token}": {token: 1.0} for token in numbers}
    tables |= {f"count_{a}_minus_{b}": {a: 1.0, b: -1.0} for a, b in itertools.combinations(numbers, 2)}
    size = setting.n_ctx
    before = tuple(tuple(float(key <= query) for key in range(size)) for query in range(size)) if size <= PLACES else None
    for name, weights in tables.items():
        rows = tuple((weights.get(token, 0.0),) for token in numbers)
        bits = CHOICE + len(weights) * setting.token_bits
        if place is None:
            yield Proposal((Attend(name, Selector(()), "tokens", "mean", rows),), bits, numeric=True)
            if before is not None:  # keys behind the query are visible, and a head has to look away from them
                so_far = Selector((Term("table", "positions", "positions", table=before),))
                share = Attend(f"share_{name}", so_far, "tokens", "mean", rows)
                lines = (share, numbered(setting), Multiply(f"{name}_so_far", share.name, "place"))
                yield Proposal(lines, bits + 4 * CHOICE, numeric=True)
            continue
        share = Attend(f"share_{name}", Selector(()), "tokens", "mean", rows)
        yield Proposal((share,), bits, numeric=True)
        yield Proposal((share, place, Multiply(name, share.name, place.name)), bits + 2 * CHOICE, numeric=True)


def remainders(setting: Setting) -> Iterator[Proposal]:
    """Counts of each token modulo small numbers, of changes of the token, and the latest token but one."""
    if setting.d_vocab > SMALL or not setting.causal:
        return
    numbers = range(setting.d_vocab)
    for token in setting.content:
        number = counting(setting, f"number_{token}", Term("among", "tokens", values=(token,)), first=first_is(setting, token))
        for modulus in (2, 3, 4):
            table = tuple(value % modulus for value in range(setting.n_ctx))
            made = Map(f"number_{token}_mod_{modulus}", (number[-1].name,), table, modulus)
            yield Proposal((*number, made), 2 * CHOICE + setting.token_bits + 3.0)
        others = tuple(other for other in numbers if other != token)
        chosen = Term("among", "tokens", values=others)
        yield _attend(f"latest_but_{token}", chosen, LATEST, bits=setting.token_bits)
    previous = Attend("previous", Selector((Term("offset", constant=1),)), "tokens")
    changed = Map("changed", ("tokens", "previous"), tuple(int(a != b) for a in numbers for b in numbers), 2)
    runs = Attend("runs", Selector((Term("among", "changed", values=(1,)),)), how="count")
    yield Proposal((previous, changed, runs), 4 * CHOICE)
    # The length of the run that a token stands in: positions since the latest change.
    start = Attend("run_start", Selector((Term("among", "changed", values=(1,)), LATEST)), "positions")
    place = setting.n_ctx
    for modulus in (2, 3):
        table = tuple((at - first) % modulus for at in range(place) for first in range(place))
        made = Map(f"run_mod_{modulus}", ("positions", "run_start"), table, modulus)
        yield Proposal((previous, changed, start, made), 6 * CHOICE)
        # The run before it, by its token and length; a first token that begins every input is a run of its own.
        size = setting.d_vocab * modulus
        which = Map(f"run_{modulus}", ("tokens", made.name), tuple(range(size)), size)
        before = Attend(f"run_{modulus}_before", Selector((Term("equal", "positions", "run_start", -1), LATEST)), which.name)
        yield Proposal((previous, changed, start, made, which, before), 8 * CHOICE)


def interleaved(setting: Setting) -> Iterator[Proposal]:
    """Shares of tokens among the places of the query's class modulo a small number, before the separator."""
    if setting.d_vocab > SMALL:
        return
    numbers = range(setting.d_vocab)
    for modulus in (2, 3, 4):
        where = Map(f"position_mod_{modulus}", ("positions",), tuple(at % modulus for at in range(setting.n_ctx)), modulus)
        for separator in (token for token in numbers if token not in setting.content or token == max(setting.content)):
            after = Attend(f"seen_{separator}", Selector((Term("among", "tokens", values=(separator,)),)), how="exists")
            terms = (Term("among", after.name, values=(0,)), Term("equal", where.name, where.name))
            for a, b in itertools.combinations(setting.content, 2):
                rows = tuple((1.0 if token == a else -1.0 if token == b else 0.0,) for token in numbers)
                name = f"share_{a}_minus_{b}_mod_{modulus}_before_{separator}"
                share = Attend(name, Selector(terms), "tokens", "mean", rows)
                yield Proposal((where, after, share), 5 * CHOICE + 4 * setting.token_bits, numeric=True)


def totals(setting: Setting) -> Iterator[Proposal]:
    """The sum of all tokens so far, taken as numbers."""
    values = len(setting.content)
    if not 2 < values <= 2**8 or setting.content != tuple(range(values)) or not setting.causal:
        return
    place = numbered(setting)
    rows = tuple((float(token) if token < values else 0.0,) for token in range(setting.d_vocab))
    mean = Attend("mean_token", Selector(()), "tokens", "mean", rows)
    yield Proposal((mean,), 2 * CHOICE, numeric=True)
    total = Multiply("total", "mean_token", place.name)
    yield Proposal((mean, place, total), 4 * CHOICE, numeric=True)
    most = min(int((values - 1) * setting.longest), 512)
    edges = tuple(n + 0.5 for n in range(most))
    count = Bucket("total_code", "total", edges, 0.5)
    if setting.d_answers > values:
        yield Proposal((mean, place, total, count), 5 * CHOICE, answers=True)
    table = tuple(n % values for n in range(most + 1))
    made = Map(f"total_mod_{values}", ("total_code",), table, values)
    yield Proposal((mean, place, total, count, made), 6 * CHOICE, answers=True)


def open_brackets(setting: Setting) -> Iterator[Proposal]:
    """With half of the tokens opening and half closing: the depth as a code, and the latest bracket that is still open."""
    content = setting.content
    if not 2 <= len(content) <= 6 or not setting.causal:
        return
    place, deepest = numbered(setting), min(setting.longest, 64)
    for count in range(1, len(content) // 2 + 1):
        for opening in itertools.combinations(content, count):
            rest = [token for token in content if token not in opening]
            for closing in itertools.combinations(rest, count):
                named = "_".join(map(str, opening))
                rows = tuple((1.0 if t in opening else -1.0 if t in closing else 0.0,) for t in range(setting.d_vocab))
                # Attention makes means and no sums: a mean of +1 and −1 over what came before, times how much came, is the depth.
                share = Attend(f"rise_{named}_{'_'.join(map(str, closing))}", Selector(()), "tokens", "mean", rows)
                rise = Multiply(f"depth_{share.name}", share.name, place.name)
                depth = Bucket(f"code_{share.name}", rise.name, tuple(n + 0.5 for n in range(deepest)), 0.5)
                lines = (share, place, rise, depth)
                bits = 4 * CHOICE + 2 * count * setting.token_bits
                if count > 1:  # of one pair of brackets `counts` proposes the same
                    yield Proposal(lines[:-1], bits, numeric=True)
                chosen = (Term("among", "tokens", values=opening), Term("equal", depth.name, depth.name), LATEST)
                inner = Attend(f"open_{share.name}", Selector(chosen), "tokens")
                yield Proposal((*lines, inner), bits + 4 * CHOICE, answers=True)


def uniques(setting: Setting) -> Iterator[Proposal]:
    """Duplicates: whether a token was there before, how often it is there, and the first key whose token is alone so far."""
    same = Term("equal", "tokens", "tokens")
    often = counting(setting, "often", same, first=first_is_same(setting))
    yield Proposal(often, 2 * CHOICE)
    repeated = Map("repeated", ("often",), tuple(int(count > 1) for count in range(setting.n_ctx)), 2)
    yield Proposal((*often, repeated), 3 * CHOICE)
    for separator in (token for token in range(setting.d_vocab) if token not in setting.content):
        if setting.causal and setting.d_vocab - len(setting.content) <= SMALL:
            yield _left_over(separator, setting)
            if setting.n_ctx <= PLACES:
                yield _each_once(separator, setting)
    alone = Attend("first_alone", Selector((Term("among", "often", values=(1,)), EARLIEST)), "tokens")
    yield Proposal((*often, alone), 5 * CHOICE, answers=True)


def _left_over(separator: int, setting: Setting) -> Proposal:
    """Whether the query's token stands more often before a separator than behind it."""
    after = Attend(f"seen_{separator}", Selector((Term("among", "tokens", values=(separator,)),)), how="exists")
    same, size = Term("equal", "tokens", "tokens"), setting.n_ctx
    counts = [
        counting(
            setting, f"{name}_{separator}", Term("among", after.name, values=(side,)), same,
            first=None if side else first_is_same(setting),
        )
        for side, name in enumerate(("given", "used"))
    ]  # fmt: skip
    table = tuple(int(used < given) for given in range(size) for used in range(size))
    made = Map(f"left_over_{separator}", tuple(lines[-1].name for lines in counts), table, 2)
    return Proposal(_joined((after,), *counts, (made,)), 5 * CHOICE + setting.token_bits)


def _each_once(separator: int, setting: Setting) -> Proposal:
    """Behind a separator, each token before it once, by the number of first instances up to it; after the last the separator."""
    size = setting.n_ctx
    ends = tuple(int(token == separator) for token in range(setting.d_vocab))
    often = counting(setting, "often", Term("equal", "tokens", "tokens"), first=first_is_same(setting))
    after = Attend(f"seen_{separator}", Selector((Term("among", "tokens", values=(separator,)),)), how="exists")
    end = Map(f"is_{separator}", ("tokens",), ends, 2)
    fresh = tuple(int(count == 1 and seen == ending) for count in range(size) for seen in range(2) for ending in range(2))
    new = Map(f"new_{separator}", (often[-1].name, after.name, end.name), fresh, 2)
    always = Map("always", ("tokens",), (1,) * setting.d_vocab, 2)
    rank = counting(setting, f"rank_{separator}", Term("among", new.name, values=(1,)), first=always)
    start = Attend(f"place_of_{separator}", Selector((Term("among", "tokens", values=(separator,)), LATEST)), "positions")
    table = tuple(max(at - first + 1, 0) if at - first + 1 < size else 0 for at in range(size) for first in range(size))
    index = Map(f"index_{separator}", ("positions", start.name), table, size)
    made = Attend(f"each_once_{separator}", Selector((Term("equal", rank[-1].name, index.name), EARLIEST)), "tokens")
    return Proposal(_joined(often, (after, end, new), rank, (start, index, made)), 10 * CHOICE, answers=True)


def existences(setting: Setting) -> Iterator[Proposal]:
    """Whether a token was there; in both directions, whether some place differs from its mirror."""
    if setting.d_vocab <= SMALL:
        for token in range(setting.d_vocab):
            seen = Attend(f"seen_{token}", Selector((Term("among", "tokens", values=(token,)),)), "tokens", "exists")
            yield Proposal((seen,), CHOICE + setting.token_bits)
    if setting.length is not None and not setting.causal:
        mirrored = Attend("mirrored", Selector((Term("mirror", constant=setting.length - 1), LATEST)), "tokens")
        size = setting.d_vocab
        ends = {0, setting.length - 1}
        differs = tuple(int(a != b) for a in range(size) for b in range(size))
        inner = Map("inside", ("positions",), tuple(int(place not in ends) for place in range(setting.n_ctx)), 2)
        apart = Map("apart", ("tokens", "mirrored"), differs, 2)
        both = Map("differs_inside", ("apart", "inside"), (0, 0, 0, 1), 2)
        some = Attend("some_differs", Selector((Term("among", "differs_inside", values=(1,)),)), "tokens", "exists")
        yield Proposal((mirrored, inner, apart, both, some), 5 * CHOICE + 8)
        share = Attend("share_differing", Selector(()), "differs_inside", "mean", ((0.0,), (1.0,)))
        yield Proposal((mirrored, inner, apart, both, share), 5 * CHOICE + 8, numeric=True)


def _joined(*parts: Sequence[Line]) -> tuple[Line, ...]:
    """Lines of several variables, each once."""
    named = {line.name: line for part in parts for line in part}
    return tuple(named.values())
