"""A random order of any number of rows, of which no list is ever made: a Feistel network permutes the numbers.

The network permutes numbers of an even number of bits; those beyond the count are sent on until they fall inside (cycle walking,
Black and Rogaway, 2002). Four rounds make a strong pseudorandom permutation (Luby and Rackoff, 1988).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt

from cutaway.errors import ConfigError

ROUNDS = 4
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of SplitMix64


class Permutation:
    """A permutation of `range(count)`: `order[numbers]` says where each goes. The same seed gives the same order everywhere.

    Args:
        count: how many numbers there are; below 2⁶².
        seed: which of the orders.

    Raises:
        ConfigError: too many, or fewer than none.
    """

    def __init__(self, count: int, seed: int = 0):
        if not 0 <= count < 2**62:
            raise ConfigError(f"a permutation of {count} numbers: there may be 0 to 2⁶² of them")
        self.count, self.seed = count, seed
        self.half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
        self.low = np.uint64((1 << int(self.half)) - 1)
        self.keys = np.random.default_rng([seed & (2**64 - 1), count]).integers(0, 2**64, ROUNDS, dtype=np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Where these numbers go."""
        return self._walked(numbers, self.keys, forward=True)

    def inverse(self, numbers: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Where these numbers come from."""
        return self._walked(numbers, self.keys[::-1], forward=False)

    def _walked(self, numbers: Int[np.ndarray, "n"], keys: UInt[np.ndarray, "rounds"], *, forward: bool) -> Int[np.ndarray, "n"]:
        out = np.asarray(numbers).astype(np.uint64)
        if len(out) and int(out.max()) >= self.count:
            raise IndexError(f"number {int(out.max())} of {self.count}")
        moving = np.arange(len(out))
        while len(moving):
            out[moving] = self._once(out[moving], keys, forward=forward)
            moving = moving[out[moving] >= np.uint64(self.count)]
        return out.astype(np.int64)

    def _once(self, x: UInt[np.ndarray, "n"], keys: UInt[np.ndarray, "rounds"], *, forward: bool) -> UInt[np.ndarray, "n"]:
        left, right = x >> self.half, x & self.low
        for key in keys:
            if forward:
                left, right = right, left ^ (self._mixed(right, key) & self.low)
            else:
                left, right = right ^ (self._mixed(left, key) & self.low), left
        return (left << self.half) | right

    @staticmethod
    def _mixed(x: UInt[np.ndarray, "n"], key: np.uint64) -> UInt[np.ndarray, "n"]:
        with np.errstate(over="ignore"):
            x = x + key
            x = (x ^ (x >> np.uint64(30))) * MIX[0]
            x = (x ^ (x >> np.uint64(27))) * MIX[1]
            return x ^ (x >> np.uint64(31))
