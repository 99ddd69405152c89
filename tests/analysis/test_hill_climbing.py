"""The search for hard inputs: it climbs, stops at a top, and changes only what it may."""

from __future__ import annotations

import pytest
import torch

from cutaway.analysis.hill_climbing import hill_climb
from cutaway.errors import ShapeError


def threes(tokens: torch.Tensor) -> torch.Tensor:
    """How many threes there are, and a little for twos."""
    return (tokens == 3).sum(1).float() + 0.1 * (tokens == 2).sum(1)


START = torch.tensor([[0, 1, 2, 0], [3, 3, 3, 3], [0, 0, 0, 3]])


def test_it_reaches_the_top_and_counts_what_it_changed():
    found = hill_climb(threes, START, range(4))
    assert found.tokens.tolist() == [[3] * 4] * 3
    assert found.changes.tolist() == [4, 0, 3] and found.final.tolist() == [4, 4, 4]
    assert found.values.shape == (6, 3)  # the start, four improvements of the first chain, and the round that finds none
    assert found.looked_at == 3 + 16 * (3 + 2 + 2 + 2 + 1)
    assert torch.equal(START[0], torch.tensor([0, 1, 2, 0]))  # its input is left alone


def test_scores_never_fall_and_match_the_tokens():
    found = hill_climb(threes, START, [2, 3], rounds=2)
    assert bool((found.values.data.diff(dim=0) >= 0).all())
    assert torch.equal(found.final, threes(found.tokens))


def test_each_step_is_the_best_of_all_neighbours():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 6, generator=generator)

    def score(tokens: torch.Tensor) -> torch.Tensor:
        return weight[torch.arange(5), tokens].sum(1)

    start = torch.randint(6, (4, 5), generator=generator)
    found = hill_climb(score, start, range(6), rounds=1)
    for chain, tokens in enumerate(start.tolist()):
        tried = [[*tokens[:place], token, *tokens[place + 1 :]] for place in range(5) for token in range(6)]
        assert float(found.final[chain]) == pytest.approx(float(score(torch.tensor(tried)).max()))


def test_only_the_given_positions_and_tokens():
    found = hill_climb(threes, START, [1, 2], positions=[2, 3])
    assert torch.equal(found.tokens[:, :2], START[:, :2])
    assert found.tokens[0].tolist() == [0, 1, 2, 2] and found.tokens[1].tolist() == [3, 3, 3, 3]


def test_a_sample_of_neighbours_is_the_same_for_the_same_seed():
    runs = [hill_climb(threes, START, range(4), neighbours=5, rounds=4, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].values.data, runs[1].values.data)
    assert runs[0].values.shape == (5, 3) and runs[0].looked_at == 3 + 4 * 3 * 5


def test_it_speaks_and_draws():
    found = hill_climb(threes, START, range(4), what="threes")
    assert "3 chains, 5 rounds" in found.summary() and "threes" in found.summary()
    assert found.figure().view == "lines"


@pytest.mark.parametrize(("start", "alphabet", "positions"), [(START[:0], [1], None), (START, [], None), (START, [1], [])])
def test_nothing_to_search(start: torch.Tensor, alphabet: list[int], positions: list[int] | None):
    with pytest.raises(ShapeError, match="at least one"):
        hill_climb(threes, start, alphabet, positions=positions)
