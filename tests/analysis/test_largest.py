"""The largest entries of a product are those of the product multiplied out, whatever was left out on the way."""

from __future__ import annotations

import pytest
import torch

from cutaway.analysis.largest import ORDERS, largest_entries


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize(("rows", "columns", "rank"), [(300, 70, 5), (2000, 900, 16), (40, 40, 60), (3, 2, 1)])
def test_what_is_left_out_holds_none_of_the_largest(by: str, rows: int, columns: int, rank: int) -> None:
    torch.manual_seed(rows + rank)
    A, B = torch.randn(rows, rank) * torch.rand(rows, 1).pow(3), torch.randn(rank, columns) * torch.rand(columns).pow(3)
    whole = A @ B
    for k in (1, 7, 400):
        found = largest_entries(A, B, k, by)
        expected = ORDERS[by](whole).flatten().topk(min(k, whole.numel())).values
        torch.testing.assert_close(ORDERS[by](torch.tensor([value for _, _, value in found])), expected)
        assert all(abs(float(whole[row, column]) - value) < 1e-5 for row, column, value in found)
        assert len({(row, column) for row, column, _ in found}) == min(k, whole.numel())


def test_most_of_a_product_is_not_multiplied_out() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(5000, 8) / torch.arange(1, 5001)[:, None], torch.randn(8, 300)
    done: list[float] = []
    largest_entries(A, B, 5, "size", lambda at, of: done.append(at / of))
    assert done[-1] == 1 and done[-2] < 0.3
