"""Datasets: sequences of an algorithmic behaviour with their answers, the same for the same seed."""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.errors import ConfigError
from cutaway.tasks.balanced_brackets import BalancedBrackets
from cutaway.tasks.behaviour import Algorithmic
from cutaway.tasks.cumulative_sum import CumulativeSum
from cutaway.tasks.modular_addition import ModularAddition
from cutaway.tasks.palindromes import Palindromes
from cutaway.tasks.sorted_list import SortedList
from cutaway.tasks.sum_of_two import SumOfTwo


class Dataset:
    """Sequences of a behaviour with their answers; slicing gives `(toks, labels)`.

    Raises:
        ConfigError: a size below zero.
    """

    def __init__(self, behaviour: Algorithmic, size: int, seed: int = 42) -> None:
        if size < 0:
            raise ConfigError(f"a dataset needs size ≥ 0; asked for size={size}")
        self.behaviour, self.size, self.seed = behaviour, size, seed
        self.vocab = list(behaviour.vocabulary)
        self.toks: Tokens = behaviour.draw(size, torch.Generator().manual_seed(seed))
        self.labels: Tokens = behaviour.answers(self.toks)

    @property
    def str_toks(self) -> list[list[str]]:
        """The sequences, in words."""
        return [[self.vocab[token] for token in row] for row in self.toks.tolist()]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.toks[index], self.labels[index]

    def to(self, device: str | torch.device) -> Dataset:
        """The same dataset, its tensors moved to `device`."""
        self.toks, self.labels = self.toks.to(device), self.labels.to(device)
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.behaviour}, size={self.size}, seed={self.seed})"


class PalindromeDataset(Dataset):
    """Lists with the class of each, read at END; see `Dataset`."""

    def __init__(self, size: int, max_value: int = 30, half_length: int = 10, seed: int = 42) -> None:
        super().__init__(Palindromes(max_value, half_length), size, seed)

    @property
    def is_palindrome(self) -> torch.Tensor:
        """1 for a palindrome, else 0: `[batch]`."""
        return self.labels[:, -1]


class SortedListDataset(Dataset):
    """Lists with what comes next behind SEP; see `Dataset`."""

    def __init__(self, size: int, list_len: int = 10, max_value: int = 50, seed: int = 42) -> None:
        super().__init__(SortedList(list_len, max_value), size, seed)


class SumDataset(Dataset):
    """Sums with their digits; see `Dataset`."""

    def __init__(self, size: int, num_digits: int = 4, seed: int = 42) -> None:
        super().__init__(SumOfTwo(num_digits), size, seed)


class CumulativeSumDataset(Dataset):
    """Lists with the sign of each sum; see `Dataset`."""

    def __init__(self, size: int, max_value: int = 5, seq_len: int = 20, seed: int = 42) -> None:
        super().__init__(CumulativeSum(max_value, seq_len), size, seed)


class ModularAdditionDataset(Dataset):
    """Pairs with their sums modulo `p`; see `Dataset`."""

    def __init__(self, size: int, p: int = 113, seed: int = 42) -> None:
        super().__init__(ModularAddition(p), size, seed)


class BracketsDataset(Dataset):
    """Brackets with the class of each, read at START; see `Dataset`."""

    def __init__(self, size: int, most: int = 40, seed: int = 42) -> None:
        super().__init__(BalancedBrackets(most), size, seed)
