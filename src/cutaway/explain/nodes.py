"""Proposals read from the network itself, one node at a time: what a head selects and takes, what an MLP distinguishes.

Hidden variables need not be guessed where attention is sharp. A head's keys, over many inputs, put the values at the key into an
order for each value at the query; if one order (ties to the latest or the earliest key) explains every choice, it is the head's
selector. What the head writes then is a function of a variable at that key. An MLP's distinct outputs are a variable that is a
table over those before it. Nodes that are not as sharp as that give no proposals: the tree does without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.explain.batched import Batch
from cutaway.explain.determining import Determined, determine
from cutaway.explain.mechanisms import CHOICE, Proposal, Setting
from cutaway.explain.subject import InputSet, Subject
from cutaway.programs.language import Attend, Kind, Line, Program, ReadOut, Selector, Term

SHARP = 0.5  # keys with at least this share of the largest weight are selected
MOST_CODES = 300  # distinct outputs of a node
FINE = 500  # outputs are equal if no entry differs by more than this part of the largest
ELEMENTS = 2**24  # of all patterns together
LATEST, EARLIEST = Term("largest", "positions"), Term("smallest", "positions")


@dataclass(frozen=True, eq=False)
class Selected:
    """The keys of one head at every counted query.

    Args:
        query: the queries' flat places, `[item]`.
        keys: which keys are selected; `visible` which could be.
    """

    query: Int[Tensor, "item"]
    keys: Bool[Tensor, "item src"]
    visible: Bool[Tensor, "item src"]

    @property
    def single(self) -> bool:
        """Whether every query selects one key."""
        return bool((self.keys.sum(1) == 1).all())

    @property
    def key(self) -> Int[Tensor, "item"]:
        """The selected key, or the first of several."""
        return self.keys.long().argmax(1)


def node_proposals(subject: Subject, setting: Setting, part: InputSet) -> list[Proposal]:
    """Variables of the nodes that can be read, in the order in which they run."""
    with torch.no_grad():
        return list(_Reader(subject, setting, part).read())


class _Reader:
    """The variables found so far, and their values on some inputs."""

    def __init__(self, subject: Subject, setting: Setting, part: InputSet) -> None:
        cfg = subject.cfg
        width = part.prompts.tokens.shape[1]
        count = max(1, ELEMENTS // (width**2 * cfg.n_heads * cfg.n_layers))
        self.subject, self.setting, self.prompts = subject, setting, part.prompts[: min(count, len(part.prompts))]
        self.batch = Batch(
            self.prompts.tokens, self.prompts.mask, n_ctx=setting.n_ctx, d_vocab=setting.d_vocab, causal=setting.causal
        )
        self.there = self.prompts.mask.flatten().nonzero().flatten()
        self.cache = subject.cached(self.prompts, ("hook_pattern", "hook_z", "hook_mlp_out"))
        self.bank = [Proposal((), 0.0), POSITIONS]
        seen = torch.ones(width, width, dtype=torch.bool)
        seen = seen.tril() if setting.causal else seen
        self.visible = (seen & self.prompts.mask[:, None, :]).flatten(0, 1)[self.there]

    def read(self) -> Iterator[Proposal]:
        cfg = self.subject.cfg
        for layer in range(cfg.n_layers):
            found = [one for head in range(cfg.n_heads) if (one := self.head(layer, head)) is not None]
            self.bank += found  # heads of one layer do not read each other
            if not cfg.attn_only and (one := self.mlp(layer)) is not None:
                found.append(one)
                self.bank.append(one)
            yield from found

    # Values.

    def values(self, one: Proposal) -> Tensor:
        """A variable's values, `[batch, pos]`."""
        if one.name == "positions":
            return self.batch.values["positions"]
        self.batch.add(one.lines, self.kinds(one.lines))
        found = self.batch.values[one.name]
        return found[..., 0] if found.ndim == 3 else found

    def kinds(self, lines: tuple[Line, ...]) -> dict[str, Kind]:
        names = tuple(map(str, range(self.setting.d_vocab)))
        bias = (0.0,) * self.setting.d_vocab
        return Program("lines", names, self.setting.n_ctx, lines, ReadOut((), bias), causal=self.setting.causal).kinds

    def size(self, one: Proposal) -> int:
        return self.kinds(one.lines)[one.name].size if one.name != "positions" else self.setting.n_ctx

    @property
    def codes(self) -> list[Proposal]:
        return [one for one in self.bank if not one.numeric]

    # Heads.

    def head(self, layer: int, head: int) -> Proposal | None:
        """The variable of a head, if its keys and what it takes from them can be said."""
        z = self.cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ self.subject.model.blocks[layer].attn.W_O[head]
        out = z.flatten(0, 1)[self.there]
        codes = distinct(out)
        if codes is None or int(codes.max()) == 0:
            return None
        pattern = self.cache[f"blocks.{layer}.attn.hook_pattern"][:, head].flatten(0, 1)[self.there]
        keys = pattern > SHARP * pattern.amax(1, keepdim=True)
        chosen = Selected(self.there, keys, self.visible)
        name = f"head_{layer}_{head}"
        if chosen.single:
            return self._copies(name, chosen, codes)
        return self._counts(name, chosen, codes) or self._averages(name, chosen, out)

    def at_keys(self, one: Proposal) -> Int[Tensor, "item src"]:
        """A variable's values at all keys of each query."""
        width = self.prompts.tokens.shape[1]
        return self.values(one)[self.there // width]

    def at_queries(self, one: Proposal | None) -> Int[Tensor, "item"]:
        """A variable's value at each query; without one, 0."""
        return torch.zeros_like(self.there) if one is None else self.values(one).flatten()[self.there]

    def _copies(self, name: str, chosen: Selected, codes: Int[Tensor, "item"]) -> Proposal | None:
        taken = [one for one in sorted(self.codes, key=self.size) if function_of(codes, self._at(one, chosen))]
        found = self.selector(chosen) if taken else None
        if found is None:
            return None
        terms, bits, read = found
        lines = joined(*read, taken[0])
        return Proposal((*lines, Attend(name, Selector(terms), taken[0].name)), bits + CHOICE, answers=True)

    def _at(self, one: Proposal, chosen: Selected) -> Int[Tensor, "item"]:
        return self.at_keys(one).gather(1, chosen.key[:, None])[:, 0]

    def selector(self, chosen: Selected) -> tuple[tuple[Term, ...], float, list[Proposal]] | None:
        """The shortest selector that explains every choice: its terms, its bits, and the variables that it reads."""
        at = self.at_queries(POSITIONS)
        for back in range(6):
            if torch.equal(chosen.key, (at - back).clamp(min=0)):
                return (Term("offset", constant=back),), CHOICE + back, []
        found: list[tuple[float, tuple[Term, ...], list[Proposal]]] = []
        for order, last in ((True, LATEST), (False, EARLIEST)):
            for query in (None, *self.codes):
                for key in self.codes:
                    levels = ordered(
                        self.at_queries(query), self.at_keys(key), chosen, 1 if query is None else self.size(query),
                        self.size(key), latest=order,
                    )  # fmt: skip
                    if levels is None:
                        continue
                    term, bits = term_of(query, key, levels)
                    read = [key] + ([] if query is None else [query])
                    both: tuple[Term, ...] = (last,) if term is None else (term, last)
                    found.append((bits + sum(one.bits for one in read), both, read if term else []))
        if not found:
            return None
        bits, terms, read = min(found, key=lambda one: one[0])
        return terms, bits, read

    def _counts(self, name: str, chosen: Selected, codes: Int[Tensor, "item"]) -> Proposal | None:
        """The head as a count of keys after the first that stand in a relation to the query."""
        width = chosen.keys.shape[1]
        after = chosen.visible & (torch.arange(width) > 0)
        found = []
        for query in (None, *self.codes):
            for key in self.codes:
                rows, columns = 1 if query is None else self.size(query), self.size(key)
                place = (self.at_queries(query)[:, None] * columns + self.at_keys(key))[after]
                yes = place[chosen.keys[after]].bincount(minlength=rows * columns)
                all_ = place.bincount(minlength=rows * columns)
                if bool(((yes > 0) & (yes < all_)).any()):
                    continue
                seen = (all_ > 0).view(rows, columns)
                term, bits = term_of(query, key, (yes > 0).long().view(rows, columns), seen, relation=True)
                if term is None:
                    continue
                lines = joined(key, *([] if query is None else [query]))
                one = Proposal((*lines, Attend(name, Selector((term,)), how="count")), bits + CHOICE + key.bits, answers=True)
                found.append(one)
        for one in sorted(found, key=lambda one: one.bits):
            if function_of(codes, self.values(one).flatten()[self.there]):
                return one
            self.batch.forget(name)  # the next one has the same name
        return None

    def _averages(self, name: str, chosen: Selected, out: Float[Tensor, "item d_model"]) -> Proposal | None:
        """The head as the mean, over all visible keys, of one number for each value of a variable."""
        if not torch.equal(chosen.keys, chosen.visible):
            return None
        out = (out - out.mean(0)).double()
        for one in sorted(self.codes, key=self.size):
            there = torch.nn.functional.one_hot(self.at_keys(one), self.size(one)).double() * chosen.visible[..., None]
            shares = there.sum(1) / chosen.visible.sum(1, keepdim=True)
            rows = torch.linalg.lstsq(shares, out, driver="gelsd").solution
            if float((shares @ rows - out).abs().max()) > 1e-3 * float(out.abs().max()):
                continue
            rows = rows - rows.mean(0)
            u, s, _ = torch.linalg.svd(rows, full_matrices=False)
            if len(s) > 1 and float(s[1]) > 1e-2 * float(s[0]):
                continue
            column = u[:, 0]
            column = (column - column.min()) / (column.max() - column.min()).clamp(min=1e-9)
            table = tuple((round(float(value), 4),) for value in column)
            bits = one.bits + CHOICE + 2.0 * len(table)
            return Proposal((*one.lines, Attend(name, Selector(()), one.name, "mean", table)), bits, numeric=True)
        return None

    # MLPs.

    def mlp(self, layer: int) -> Proposal | None:
        """The variable of an MLP: a table over those before it that tells its outputs apart."""
        codes = distinct(self.cache[f"blocks.{layer}.hook_mlp_out"].flatten(0, 1)[self.there])
        if codes is None or int(codes.max()) == 0:
            return None
        columns = {one.name: self.values(one).flatten()[self.there] for one in self.bank}
        sizes = {one.name: self.size(one) for one in self.bank if not one.numeric}
        found: Determined | None = determine(codes, self.bank, columns, sizes)
        return None if found is None else found.proposal(f"mlp_{layer}", int(codes.max()) + 1)


POSITIONS = Proposal((), 1.0, named="positions")


def distinct(out: Float[Tensor, "item d_model"]) -> Int[Tensor, "item"] | None:
    """Which of its distinct outputs a node gives; None where there are too many."""
    size = float(out.detach().abs().max())
    if size < 1e-6:
        return torch.zeros(len(out), dtype=torch.long)
    scaled = out / size * FINE
    kinds, codes = torch.unique(scaled.round().int(), dim=0, return_inverse=True)
    if len(kinds) > MOST_CODES:
        return None
    means = torch.zeros(kinds.shape).index_add(0, codes, scaled.float())
    means = means / codes.bincount(minlength=len(kinds))[:, None]
    near = torch.cdist(means, means, p=torch.inf) < 1  # what rounding has split is one output
    return _together(near)[codes]


def _together(near: Bool[Tensor, "kind kind"]) -> Int[Tensor, "kind"]:
    """Kinds that are joined by steps from near to near, numbered."""
    group = torch.arange(len(near))
    for _ in range(len(near)):
        lowest = torch.where(near, group, len(near)).amin(1)
        if torch.equal(lowest, group):
            break
        group = lowest
    return torch.unique(group, return_inverse=True)[1]


def function_of(target: Int[Tensor, "item"], codes: Int[Tensor, "item"]) -> bool:
    """Whether the target is a function of the codes."""
    pairs = torch.stack([codes, target], 1).unique(dim=0)
    return len(pairs) == len(codes.unique())


def joined(*parts: Proposal) -> tuple[Line, ...]:
    """Lines of several variables, each once."""
    return tuple({line.name: line for part in parts for line in part.lines}.values())


def ordered(
    query: Int[Tensor, "item"], keys: Int[Tensor, "item src"], chosen: Selected, rows: int, columns: int, *, latest: bool
) -> Int[Tensor, "row column"] | None:
    """Levels of key values, for each value at the query, such that the chosen key is the best of the visible ones.

    Of keys on one level the latest (or earliest) is taken. A visible key's value is at most on the level of the chosen one's, and
    below it where the key would win a tie. None where no levels do that.
    """
    if rows * columns**2 > 2**23:
        return None
    best = chosen.key
    value = keys.gather(1, best[:, None])
    place = torch.arange(keys.shape[1])
    wins = place > best[:, None] if latest else place < best[:, None]
    flat = (query[:, None] * columns + value) * columns + keys

    def edges(where: Tensor) -> Bool[Tensor, "row best other"]:
        return (flat[where].bincount(minlength=rows * columns**2) > 0).view(rows, columns, columns)

    strict, weak = edges(chosen.visible & wins), edges(chosen.visible & ~wins)
    reach = strict | weak  # [row, better, worse]
    for _ in range(max(1, math.ceil(math.log2(columns + 1)))):
        reach = reach | (reach.float() @ reach.float() > 0)
    back = reach.transpose(1, 2) | torch.eye(columns, dtype=torch.bool)
    if bool((strict & back).any()):
        return None
    levels = torch.zeros(rows, columns, dtype=torch.long)
    for _ in range(columns):
        under = torch.where(strict, levels[:, None, :] + 1, torch.where(weak, levels[:, None, :], 0)).amax(2)
        if torch.equal(under.maximum(levels), levels):
            break
        levels = levels.maximum(under)
    return levels


def term_of(
    query: Proposal | None, key: Proposal, levels: Int[Tensor, "row column"], seen: Bool[Tensor, "row column"] | None = None, *,
    relation: bool = False,
) -> tuple[Term | None, float]:  # fmt: skip
    """A table of levels as the simplest term that means it where it was seen, and its bits; None where all are on one level."""
    rows, columns = levels.shape
    if not relation and int(levels.max()) == int(levels.min()):
        return None, CHOICE
    one = levels.unique().numel()
    if query is None:
        row = levels[0]
        if one == 2:
            best = (row == row.max()).nonzero().flatten().tolist()
            return Term("among", key.name, values=tuple(best)), CHOICE + columns
        if not relation and one == columns and torch.equal(row, torch.arange(columns)):
            return Term("largest", key.name), CHOICE
        if not relation and one == columns and torch.equal(row, torch.arange(columns).flip(0)):
            return Term("smallest", key.name), CHOICE
    elif rows == columns and bool((levels == torch.eye(rows, dtype=torch.long))[slice(None) if seen is None else seen].all()):
        return Term("equal", key.name, query.name), CHOICE + 2
    table = tuple(tuple(float(value) for value in row) for row in levels.tolist())
    bits = CHOICE + rows * columns * math.log2(max(one, 2))
    return Term("table", key.name, None if query is None else query.name, table=table), bits
