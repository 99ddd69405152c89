"""Lines of a program on many inputs at once: the interpreter's meaning, in tensors.

`tests/explain/test_batched.py` holds both to the same values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.programs import Attend, Bucket, Kind, Map, Multiply, Program, Selector, Term, Weigh
from cutaway.programs.language import Line

Codes = Int[Tensor, "batch pos"]
NumberColumns = Float[Tensor, "batch pos number"]
DestSrc = Float[Tensor, "batch dest src"]
Values = dict[str, Tensor]


class Batch:
    """Inputs with the values of every variable that was asked for; lines are evaluated once.

    Args:
        tokens: `[batch, pos]`, padded on the right.
        mask: `[batch, pos]`, true where tokens are.
        causal: keys after the query are not visible.
    """

    def __init__(self, tokens: Codes, mask: Bool[Tensor, "batch pos"], *, n_ctx: int, d_vocab: int, causal: bool = True) -> None:
        self.tokens, self.mask, self.causal = tokens, mask, causal
        self.values: Values = {"tokens": tokens, "positions": torch.arange(tokens.shape[1]).expand_as(tokens)}
        self.kinds: dict[str, Kind] = {"tokens": Kind(d_vocab), "positions": Kind(n_ctx)}

    def add(self, lines: Iterable[Line], kinds: dict[str, Kind]) -> None:
        """Evaluate lines that are not known yet."""
        for line in lines:
            if line.name not in self.values:
                self.values[line.name] = self._line(line, kinds)
                self.kinds[line.name] = kinds[line.name]

    def forget(self, name: str) -> None:
        """Let go of a variable, so that another can have its name."""
        del self.values[name], self.kinds[name]

    def logits(self, program: Program) -> Float[Tensor, "batch pos token"]:
        """The logits of a program."""
        self.add(program.live, program.kinds)
        read = program.read_out
        return self._sum(read.terms, read.bias)

    def _line(self, line: Line, kinds: dict[str, Kind]) -> Tensor:
        if isinstance(line, Attend):
            return self._attend(line, kinds)
        if isinstance(line, Map):
            index = torch.zeros_like(self.tokens)
            for name in line.inputs:
                index = index * kinds[name].size + self.values[name]
            return torch.tensor(line.table)[index]
        if isinstance(line, Weigh):
            return self._sum(line.terms, line.bias)
        if isinstance(line, Bucket):
            return (self.values[line.of] >= torch.tensor(line.edges, dtype=torch.float64)).sum(-1)
        assert isinstance(line, Multiply)
        return self.values[line.left] * self.values[line.right]

    def _sum(self, terms: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...], bias: tuple[float, ...]) -> NumberColumns:
        out = torch.tensor(bias, dtype=torch.float64).expand(*self.tokens.shape, -1)
        for name, rows in terms:
            table, values = torch.tensor(rows, dtype=torch.float64), self.values[name]
            out = out + (values @ table if values.ndim == 3 else table[values])
        return out

    def _visible(self, part: slice) -> Bool[Tensor, "batch dest src"]:
        length = self.tokens.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool)
        return (seen.tril() if self.causal else seen) & self.mask[part, None, :]

    def _attend(self, line: Attend, kinds: dict[str, Kind]) -> Tensor:
        size = max(1, 2**22 // self.tokens.shape[1] ** 2)
        parts = [self._attend_part(line, kinds, slice(at, at + size)) for at in range(0, len(self.tokens), size)]
        return torch.cat(parts)

    def _attend_part(self, line: Attend, kinds: dict[str, Kind], part: slice) -> Tensor:
        visible = self._visible(part)
        if line.how in ("count", "exists"):
            holds = visible.clone()
            holds[:, :, 0] = False
            for term in line.select.terms:
                holds &= self._score(term, part) != 0
            found = holds.sum(2)
            return found if line.how == "count" else (found > 0).long()
        if line.how == "copy":
            chosen = self._best(line.select, visible, part).long().argmax(2)
            source = self.values[line.of][part]
            if source.ndim == 3:
                return source.gather(1, chosen[..., None].expand(-1, -1, source.shape[2]))
            return source.gather(1, chosen)
        return self._weights(line.select, visible, part) @ self._rows(line, kinds)[part]

    def _rows(self, line: Attend, kinds: dict[str, Kind]) -> NumberColumns:
        values = self.values[line.of]
        if line.table is not None:
            table = torch.tensor(line.table, dtype=torch.float64)
            return values @ table if values.ndim == 3 else table[values]
        if values.ndim == 3:
            return values
        return torch.nn.functional.one_hot(values, kinds[line.of].size).double()

    def _best(self, select: Selector, visible: Tensor, part: slice) -> Bool[Tensor, "batch dest src"]:
        best = visible
        for term in select.terms:
            score = self._score(term, part).masked_fill(~best, -torch.inf)
            best = best & (score == score.amax(2, keepdim=True))
        return best

    def _weights(self, select: Selector, visible: Tensor, part: slice) -> DestSrc:
        if select.temperature is None:
            best = self._best(select, visible, part).double()
            return best / best.sum(2, keepdim=True).clamp(min=1)
        score = torch.zeros(visible.shape, dtype=torch.float64)
        for term in select.terms:
            score = score + self._score(term, part) * term.weight / select.temperature
        return score.masked_fill(~visible, -torch.inf).softmax(2).nan_to_num(0)

    def _score(self, term: Term, part: slice) -> DestSrc:
        length = self.tokens.shape[1]
        at = torch.arange(length)
        if term.relation == "offset":
            return (at == (at[:, None] - term.constant).clamp(min=0)).double()[None]
        if term.relation == "mirror":
            return (at == term.constant - at[:, None]).double()[None]
        key = self.values[term.key][part][:, None, :]
        query = None if term.query is None else self.values[term.query][part][:, :, None]
        if term.relation == "equal":
            assert query is not None
            return (key == query + term.constant).double()
        if term.relation == "among":
            return torch.isin(key, torch.tensor(term.values)).double()
        if term.relation == "table":
            table = torch.tensor(term.table, dtype=torch.float64)
            return table[0][key] if query is None else table[query, key]
        return key.double() if term.relation == "largest" else -key.double()
