"""The hardest inputs: a search that changes one token at a time for as long as a score rises.

Each chain starts from a sequence of its own and moves to the best of its neighbours (one token replaced) until none
is better, so what chains end in says what a model fails on, and how many of them end there says how rare that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.errors import ShapeError
from cutaway.numbers_given import indices, options
from cutaway.runs.provenance import with_provenance
from cutaway.runs.results import Labelled, Result, mean_of
from cutaway.view import Figure, line_chart

Objective = Callable[[Tokens], Float[Tensor, "batch"]]
Propose = Callable[[Tokens, torch.Generator], Tokens]


@dataclass(frozen=True, eq=False)
class HillClimb(Result):
    """Where chains began and ended, and their scores on the way, `[round, chain]`; a chain that stopped keeps its score."""

    values: Labelled
    start: Tensor
    tokens: Tensor
    looked_at: int

    @property
    def final(self) -> Float[Tensor, "chain"]:
        """The score that each chain ended with."""
        return self.values.data[-1]

    @property
    def changes(self) -> Int[Tensor, "chain"]:
        """How many tokens differ between the beginning and the end."""
        return (self.start != self.tokens).sum(1)

    def figure(self) -> Figure:
        """The median chain, the middle half and the best, by round."""
        data = self.values.data.float()
        low, middle, high = torch.quantile(data, torch.tensor([0.25, 0.5, 0.75], dtype=data.dtype), dim=1)
        series = {"median chain": middle, "best chain": data.max(1).values}
        return line_chart(
            series, intervals={"median chain": torch.stack([low, high])}, x_name="round", y_name=self.values.what,
            title="Search for hard inputs", interval_name="middle half of the chains",
        )  # fmt: skip

    def summary(self) -> str:
        """What the search came to."""
        rounds, chains = self.values.shape
        first, last = self.values.data[0], self.final
        return (
            f"{chains} chains, {rounds - 1} rounds, {self.looked_at:,} sequences looked at: {self.values.what} from "
            f"{float(first.median()):.3g} (median; highest {float(first.max()):.3g}) to "
            f"{float(last.median()):.3g} (highest {float(last.max()):.3g})"
        )


@with_provenance
@options(rounds=0, neighbours=1, batch_size=1, seed=0)
@torch.no_grad()
def hill_climb(
    score: Objective,
    start: Tokens,
    alphabet: Sequence[int] | Propose,
    *,
    positions: Sequence[int] | None = None,
    rounds: int = 20,
    neighbours: int = 256,
    batch_size: int = 4096,
    seed: int = 0,
    what: str = "score",
    unit: str = "",
) -> HillClimb:
    """Raise a score of sequences by replacing one token at a time.

    Args:
        score: sequences `[batch, pos]` to one number each.
        start: one sequence for each chain.
        alphabet: the tokens that may be put in; or a function that gives one changed sequence for each (and a generator),
            where not every sequence is one.
        positions: where; everywhere by default.
        neighbours: how many replacements a chain tries in a round: all there are where they are no more, else a sample.
        rounds: at most; the search ends earlier when no chain improves (and nothing is sampled).

    Raises:
        ShapeError: no chains, no tokens to put in, or nowhere to put them.
    """
    nothing = not callable(alphabet) and not len(alphabet)
    if not len(start) or not start.shape[1] or nothing or (positions is not None and not len(positions)):
        raise ShapeError("a search needs at least one sequence, one position and one token to put there")
    places = list(range(start.shape[1])) if positions is None else indices(positions, start.shape[1], "position")
    device, generator = start.device, torch.Generator().manual_seed(seed)
    tokens = torch.tensor([] if callable(alphabet) else list(alphabet), dtype=torch.long)
    pairs = torch.cartesian_prod(torch.tensor(places), tokens).view(-1, 2)
    sampled = callable(alphabet) or len(pairs) > neighbours
    current = start.clone()
    best = _scores(score, current, batch_size)
    history, looked_at = [best], len(start)
    going = torch.arange(len(start), device=device)  # a chain that no replacement improves has stopped for good
    for _ in range(rounds):
        if callable(alphabet):
            many = current[going].repeat_interleave(neighbours, 0)
            around = alphabet(many, generator).unflatten(0, (len(going), neighbours))
        else:
            tried = pairs[torch.randperm(len(pairs), generator=generator)[:neighbours]] if sampled else pairs
            tried = tried.to(device)
            around = current[going, None].repeat(1, len(tried), 1)
            around[:, torch.arange(len(tried), device=device), tried[:, 0]] = tried[:, 1]
        found, which = _scores(score, around.flatten(0, 1), batch_size).view(len(going), -1).max(1)
        looked_at += around.shape[0] * around.shape[1]
        better = found > best[going]
        moving = going[better]
        current[moving] = around[better, which[better]]
        best = best.index_put((moving,), found[better])
        history.append(best)
        going = going if sampled else moving
        if not len(going):
            break
    return HillClimb(Labelled(torch.stack(history), ("round", "chain"), {}, what, unit), start, current, looked_at)


def in_common(
    found: Mapping[str, Float[Tensor, "chain pos"]],
    ordinary: Mapping[str, Float[Tensor, "batch pos"]],
    failed: Bool[Tensor, "chain pos"],
    mistakes: Bool[Tensor, "batch pos"],
) -> dict[str, dict[str, float]]:
    """How failures that a search found differ from ordinary inputs at the same positions, by quantity (NaN: has none).

    The mean over failures ("search"), over the ordinary inputs' own mistakes ("mistakes"), over ordinary inputs at the positions
    of the failures ("ordinary"), and how far the first is from the last, in standard deviations there.
    """
    places, rows = failed.nonzero()[:, 1], {}
    for name, values in found.items():
        usual = ordinary[name].nanmean(0)
        spread = (ordinary[name] - usual).square().nanmean(0).sqrt()[places]
        away = (values[failed] - usual[places]) / spread.masked_fill(spread == 0, torch.nan)
        rows[name] = {"search": mean_of(values, failed), "mistakes": mean_of(ordinary[name], mistakes),
                      "ordinary": mean_of(usual[places]), "standard_deviations": mean_of(away)}  # fmt: skip
    return rows


def _scores(score: Objective, tokens: Tokens, batch_size: int) -> Float[Tensor, "batch"]:
    return torch.cat([score(part) for part in tokens.split(batch_size)])
