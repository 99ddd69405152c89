"""What is written comes back, each tensor kept once, and no two tensors taken for one."""

from __future__ import annotations

import torch

from cutaway.runs.written import Writer, read


def test_views_of_the_same_numbers_stay_apart() -> None:
    numbers = torch.arange(12.0)
    one = torch.tensor(2.0)
    some = [numbers, numbers.view(3, 4), numbers.view(4, 3).T, one.expand(2, 3), one.expand(3, 2), numbers.view(torch.int32)]
    writer = Writer()
    written = writer.write([*some, *some])
    assert len(writer.tensors) == len(some)
    found = read(written, writer.tensors)
    assert all(torch.equal(mine, given) and mine.dtype == given.dtype for mine, given in zip(found, [*some, *some], strict=True))
