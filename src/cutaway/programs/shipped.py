"""Programs that come with the library, of different kinds. `find(name)` makes one, of any vocabulary and length it allows.

Each is a way a transformer can do the task, written down; their compiled networks are the known truth that circuits are held to.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable

from cutaway.errors import ProgramError, UnknownName, nearest
from cutaway.programs.language import (
    Attend,
    Bucket,
    Map,
    Program,
    ReadOut,
    Weigh,
    among,
    earliest,
    equal,
    first,
    hard,
    largest,
    latest,
    mirror,
    offset,
    one_hot,
    same,
    says,
    scores,
    smallest,
    soft,
)

N_CTX = 21  # twenty tokens and one that begins
BOS = "<bos>"


def letters(count: int) -> tuple[str, ...]:
    """Names of tokens: a, b, c, …"""
    if not 1 <= count <= 26:
        raise ProgramError(f"there are 1 to 26 letters, not {count}")
    return tuple(string.ascii_lowercase[:count])


def numbers(count: int) -> tuple[str, ...]:
    """Names of tokens: 0, 1, 2, …"""
    return tuple(map(str, range(count)))


def table_of(sizes: tuple[int, ...], value: Callable[..., int]) -> tuple[int, ...]:
    """A flat table of a function of joint values, as `Map` takes it."""
    return tuple(int(value(*codes)) for codes in itertools.product(*map(range, sizes)))


def compared(size: int, holds: Callable[[int, int], bool]) -> tuple[tuple[float, ...], ...]:
    """A table of scores: `[query value][key value]`, 1 where the comparison holds."""
    return tuple(tuple(float(holds(q, k)) for k in range(size)) for q in range(size))


def previous_token(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """The token before; at the first position its own."""
    lines = (Attend("before", hard(offset(1))),)
    return Program("previous_token", letters(size), n_ctx, lines, says("before", size), about="the token before")


def first_token(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """The first token of the text."""
    return Program(
        "first_token", letters(size), n_ctx, (Attend("start", hard(first())),), says("start", size), about="the first token"
    )


def shift_cipher(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """Each token moved one letter on: no attention at all."""
    lines = (Map("moved", ("tokens",), table_of((size,), lambda a: (a + 1) % size), size),)
    return Program("shift_cipher", letters(size), n_ctx, lines, says("moved", size), about="each letter moved on by one")


def induction(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """What followed the last time that this token stood here: a previous-token head, and a head that looks for it."""
    lines = (
        Attend("before", hard(offset(1))),
        Attend("followed", hard(equal("tokens", "before"), latest())),
    )
    return Program(
        "induction", letters(size), n_ctx, lines, says("followed", size), about="the token that followed this one before"
    )


def copied_text(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """After <sep>, the text before it once more; ends where the text ends."""
    names = (BOS, "<sep>", *letters(size))
    lines = (
        Attend("before", hard(offset(1))),
        Attend("followed", hard(equal("tokens", "before"), earliest())),
    )
    read = says("followed", len(names))
    return Program("copied_text", names, n_ctx, lines, read, bos=0, about="a text of distinct letters again, after <sep>")


def histogram(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """How often each token occurs in the whole text."""
    lines = (Attend("often", hard(same("tokens")), how="count"),)
    return Program(
        "histogram", (BOS, *letters(size)), n_ctx, lines, says("often", n_ctx), numbers(n_ctx), causal=False, bos=0,
        about="how often this token occurs in the text",
    )  # fmt: skip


def seen_before(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """Whether the token has occurred before."""
    earlier = scores("positions", compared(n_ctx, lambda q, k: k < q), query="positions")
    lines = (Attend("seen", hard(same("tokens"), earlier), how="exists"),)
    return Program(
        "seen_before", (BOS, *letters(size)), n_ctx, lines, says("seen", 2), ("new", "seen"), bos=0,
        about="whether this token occurred before",
    )  # fmt: skip


def sort(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """At each position the token that belongs there once the text is sorted: a token's place is how many go before it."""
    tokens = size + 1
    less = scores("tokens", compared(tokens, lambda q, k: k < q), query="tokens")
    earlier = scores("positions", compared(n_ctx, lambda q, k: k < q), query="positions")
    lines = (
        Attend("smaller", hard(less), how="count"),
        Attend("equals", hard(same("tokens"), earlier), how="count"),
        Map("place", ("smaller", "equals"), table_of((n_ctx, n_ctx), lambda a, b: min(a + b + 1, n_ctx - 1)), n_ctx),
        Attend("sorted_token", hard(equal("positions", "place"), latest())),
    )
    return Program(
        "sort", (BOS, *letters(size)), n_ctx, lines, says("sorted_token", tokens), causal=False, bos=0, about="the text, sorted"
    )


def sorted_text(size: int = 8, n_ctx: int = N_CTX) -> Program:
    """After <sep>, the distinct numbers before it in ascending order: each time the smallest that is larger than the last."""
    names = (*numbers(size), BOS, "<sep>", "<eos>")
    bos, sep = size, size + 1
    table = [[float(k < size and (q >= size or k > q)) for k in range(len(names))] for q in range(len(names))]
    lines = (Attend("next_one", hard(scores("tokens", table, query="tokens"), smallest("tokens"))),)
    found = [[2.0 * (token == value) for token in range(len(names))] for value in range(len(names))]
    last = [
        [float(value < size and token == size + 2 and value == size - 1) * 3 for token in range(len(names))]
        for value in range(len(names))
    ]
    read = ReadOut(
        (("next_one", tuple(map(tuple, found))), ("tokens", tuple(map(tuple, last)))), (0.0,) * len(names), at=(*range(size), sep)
    )
    return Program("sorted_text", names, n_ctx, lines, read, bos=bos, about="distinct numbers in order, after <sep>")


def reverse(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """At each position the token that stands as far from the end."""
    lines = (
        Attend("length", hard(), how="count"),
        Map("opposite", ("length", "positions"), table_of((n_ctx, n_ctx), lambda a, b: max(a - b + 1, 0)), n_ctx + 1),
        Attend("reversed_token", hard(equal("opposite", "positions"), earliest())),
    )
    return Program(
        "reverse", (BOS, *letters(size)), n_ctx, lines, says("reversed_token", size + 1), causal=False, bos=0,
        about="the text from its end to its beginning",
    )  # fmt: skip


def palindrome(size: int = 4, length: int = 6) -> Program:
    """Whether a text of one fixed length, between <bos> and <end>, reads the same from behind; answered at <end>."""
    names = (*letters(size), BOS, "<end>")
    tokens = len(names)
    lines = (
        Attend("opposite", hard(mirror(length + 1), latest())),
        Map("differs", ("tokens", "opposite"), table_of((tokens, tokens), lambda a, b: a < size and b < size and a != b), 2),
        Attend("broken", hard(among("differs", (1,))), how="exists"),
    )
    read = ReadOut((("broken", ((0.0, 1.0), (1.0, 0.0))),), (0.0, 0.0), at=(size + 1,))
    return Program(
        "palindrome", names, length + 2, lines, read, ("no", "yes"), causal=False, bos=size,
        about=f"whether {length} letters read the same from behind",
    )  # fmt: skip


def dyck_depth(n_ctx: int = N_CTX) -> Program:
    """How many brackets are open: those opened less those closed (0 where more were closed)."""
    lines = (
        Attend("opened", hard(among("tokens", (1,))), how="count"),
        Attend("closed", hard(among("tokens", (2,))), how="count"),
        Map("depth", ("opened", "closed"), table_of((n_ctx, n_ctx), lambda a, b: max(a - b, 0)), n_ctx),
    )
    return Program(
        "dyck_depth",
        (BOS, "(", ")", "x"),
        n_ctx,
        lines,
        says("depth", n_ctx),
        numbers(n_ctx),
        bos=0,
        about="how many brackets are open",
    )


def majority(n_ctx: int = N_CTX) -> Program:
    """Which of two tokens is more frequent so far ("0" where both are): attention to all, and nothing else."""
    lines = (Attend("balance", hard(), how="mean", table=((-1.0,), (1.0,))),)
    read = ReadOut((("balance", ((0.0, 1.0),)),), (0.5 / n_ctx, 0.0))
    return Program("majority", ("0", "1"), n_ctx, lines, read, about="the more frequent token so far")


def most_frequent(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """The most frequent token so far; the first in the alphabet of those that are."""
    lines = (Attend("shares", hard(), how="mean"),)
    bias = tuple(-0.5 * token / (size * n_ctx) for token in range(size))
    return Program(
        "most_frequent",
        letters(size),
        n_ctx,
        lines,
        ReadOut((("shares", one_hot(size)),), bias),
        about="the most frequent token so far",
    )


def fraction_of_previous(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """Which quarter the share of "a" among the tokens so far lies in."""
    step = 1 / (8 * n_ctx)
    lines = (
        Attend("share_of_a", hard(), how="mean", table=tuple((float(token == 0),) for token in range(size))),
        Bucket("quarter", "share_of_a", tuple(part / 4 - step for part in (1, 2, 3)), step),
    )
    return Program(
        "fraction_of_previous", letters(size), n_ctx, lines, says("quarter", 4), ("below 1/4", "1/4", "1/2", "3/4"),
        about='the share of "a" so far, in quarters',
    )  # fmt: skip


def first_unique(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """The first token of the text that occurs once, or "?": counting, then looking for the earliest 1."""
    names = (*letters(size), BOS)
    lines = (
        Attend("often", hard(same("tokens")), how="count"),
        Attend("found", hard(among("often", (1,)), earliest())),
    )
    table = tuple(tuple(float(token == value) for token in range(size + 1)) for value in range(size + 1))
    read = ReadOut((("found", table),), (0.0,) * (size + 1))
    return Program(
        "first_unique", names, n_ctx, lines, read, (*letters(size), "?"), causal=False, bos=size,
        about="the first token that occurs once",
    )  # fmt: skip


def maximum(size: int = 6, n_ctx: int = N_CTX) -> Program:
    """The largest number so far."""
    lines = (Attend("top", hard(largest("tokens"))),)
    return Program("maximum", numbers(size), n_ctx, lines, says("top", size), about="the largest number so far")


def parity(n_ctx: int = N_CTX) -> Program:
    """Whether the number of ones so far is odd."""
    lines = (
        Attend("ones", hard(among("tokens", (2,))), how="count"),
        Map("odd", ("ones",), table_of((n_ctx,), lambda a: a % 2), 2),
    )
    return Program(
        "parity", (BOS, "0", "1"), n_ctx, lines, says("odd", 2), ("even", "odd"), bos=0, about="the parity of the ones so far"
    )


def modular_sum(size: int = 5) -> Program:
    """a b =: (a + b) modulo `size`, after =, by a table."""
    names = (*numbers(size), "=")
    lines = (
        Attend("left", hard(offset(2))),
        Attend("right", hard(offset(1))),
        Map("total", ("left", "right"), table_of((size + 1, size + 1), lambda a, b: (a % size + b % size) % size), size),
    )
    read = ReadOut(
        (("total", tuple(tuple(float(t == v) for t in range(size + 1)) for v in range(size))),), (0.0,) * (size + 1), at=(size,)
    )
    return Program("modular_sum", names, N_CTX, lines, read, about=f"the sum of two numbers modulo {size}")


def after_last_mark(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """The token after the latest "!"; the text's first without one."""
    names = (*letters(size), "!")
    lines = (
        Attend("before", hard(offset(1))),
        Attend("marked", hard(among("before", (size,)), latest())),
    )
    return Program("after_last_mark", names, n_ctx, lines, says("marked", size + 1), about='the token after the latest "!"')


def may_follow(n_ctx: int = N_CTX) -> Program:
    """All tokens that may come next in (aa)*: after an even number of a's also the end; the read-out is a threshold."""
    lines = (
        Attend("seen", hard(among("tokens", (1,))), how="count"),
        Map("odd", ("seen",), table_of((n_ctx,), lambda a: a % 2), 2),
    )
    read = ReadOut((("odd", ((0.0, 0.0, 1.0), (0.0, 0.0, -1.0))),), (-1.0, 1.0, 0.0), kind="above")
    return Program(
        "may_follow", (BOS, "a", "<eos>"), n_ctx, lines, read, bos=0, about="which tokens may follow in the language (aa)*"
    )


def soft_vote(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """A soft head: each token looks for the next letter of the alphabet and votes for it."""
    table = [[2.0 * (k == (q + 1) % size) - 0.3 * (k == q) for k in range(size)] for q in range(size)]
    lines = (
        Attend(
            "votes",
            soft(scores("tokens", table, query="tokens"), scores("positions", [[0.05 * k for k in range(n_ctx)]])),
            how="mean",
        ),
    )
    bias = tuple(0.0137 * token for token in range(size))
    return Program("soft_vote", letters(size), n_ctx, lines, ReadOut((("votes", one_hot(size, 2.0)),), bias), about="a soft vote")


def two_pointers(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """Whether the tokens one and two places back are the same."""
    lines = (
        Attend("one_back", hard(offset(1))),
        Attend("two_back", hard(offset(2))),
        Map("alike", ("one_back", "two_back"), table_of((size, size), lambda a, b: a == b), 2),
    )
    return Program(
        "two_pointers",
        letters(size),
        n_ctx,
        lines,
        says("alike", 2),
        ("no", "yes"),
        about="whether the two tokens before are alike",
    )


def mostly_a(size: int = 4, n_ctx: int = N_CTX) -> Program:
    """Whether more than half of the text is "a": a mean against a threshold, then compared with the token's own."""
    lines = (
        Attend("share_of_a", hard(), how="mean", table=tuple((float(token == 0),) for token in range(size))),
        Weigh("surplus", (("share_of_a", ((2.0,),)),), (-1.0,)),
        Bucket("more", "surplus", (0.5 / n_ctx,), 0.5 / n_ctx),
        Map("both", ("more", "tokens"), table_of((2, size), lambda a, b: a and b == 0), 2),
    )
    return Program(
        "mostly_a",
        letters(size),
        n_ctx,
        lines,
        says("both", 2),
        ("no", "yes"),
        causal=False,
        about='an "a" in a text of mostly "a"',
    )


SHIPPED: dict[str, Callable[..., Program]] = {
    made.__name__: made
    for made in (
        previous_token, first_token, shift_cipher, induction, copied_text, histogram, seen_before, sort, sorted_text, reverse,
        palindrome, dyck_depth, majority, most_frequent, fraction_of_previous, first_unique, maximum, parity, modular_sum,
        after_last_mark, may_follow, soft_vote, two_pointers, mostly_a,
    )
}  # fmt: skip


def names() -> list[str]:
    """The programs there are."""
    return list(SHIPPED)


def find(name: str, **sizes: int) -> Program:
    """A shipped program; `sizes` (`size`, `n_ctx`, …) as its function takes them.

    Raises:
        UnknownName: there is none of this name.
    """
    if name not in SHIPPED:
        raise UnknownName(f"no program called {name!r}{nearest(name, SHIPPED)}; there are {', '.join(SHIPPED)}")
    return SHIPPED[name](**sizes)


__all__ = ["SHIPPED", "find", "letters", "names", "numbers", "table_of"]
