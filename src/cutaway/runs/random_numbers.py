"""Random numbers that depend on nothing but where they stand.

A generator's numbers depend on how many were drawn before, and so on how a run is cut into batches. These are hashes of
seeds and indices: any part of an array has the same numbers whether it is asked for alone or with the rest.

Source of the hash: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
PIECE = 2**20  # numbers made at once


def normal(seed: Sequence[int], *axes: Sequence[int]) -> Float[Tensor, "..."]:
    """Standard normal numbers, one for each combination of indices along the axes."""
    state = np.zeros((), dtype=np.uint64).reshape(1)
    for number in seed:
        state = _mixed(state, [number])
    first, rest = list(axes[0]), axes[1:]
    count = max(1, int(np.prod([len(axis) for axis in rest])))
    step = max(1, PIECE // count)
    pieces = [_normal(state, [first[at : at + step], *rest]) for at in range(0, max(len(first), 1), step)]
    return torch.cat(pieces)


def _normal(state: np.ndarray, axes: Sequence[Sequence[int]]) -> Tensor:
    state = state.reshape(())
    for axis in axes:
        state = _mixed(state[..., None], axis)
    uniform = ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.special.ndtri(torch.from_numpy(uniform)).float()


def _mixed(state: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Each state with each number mixed in, `[…, number]`; products wrap around."""
    x = state + (np.array([number % 2**64 for number in numbers], dtype=np.uint64) + np.uint64(1)) * GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def cycle(count: int, seed: int) -> Tensor:
    """A random order in which nothing keeps its place: everything moves one further along a random cycle."""
    around = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = torch.empty_like(around)
    order[around] = around.roll(-1)
    return order
