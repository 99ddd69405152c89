"""First unique character: at each position, which letter so far is the first that has not been repeated?

A sequence starts with the null character `?`, which is also the answer where no letter is unique. Letters are
drawn uniformly by a generator of the dataset's own, so a seed gives the same sequences everywhere, and Torch's
global state is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, TokenError

NULL = "?"
LETTERS = tuple("abcdefghij")


def letters_of(size: int, length: int, count: int, generator: torch.Generator) -> Int[Tensor, "batch length"]:
    """Uniform draws of `length` letters out of `count`."""
    return torch.randint(0, count, (size, length), generator=generator)


def first_unique(tokens: Tokens, null: int) -> Tokens:
    """The answer at every position of sequences that start with the null character `null`, the last token.

    A letter's entry in `seen` is the position of its only occurrence so far; letters that have not occurred, or
    more than once, hold a number above every position. The answer is where the smallest entry points.

    Raises:
        TokenError: a token is not between 0 and `null`, or a sequence does not start with `null`.
    """
    batch, length = tokens.shape
    if tokens.numel():
        low, high = (int(extreme) for extreme in torch.aminmax(tokens))
        if low < 0 or high > null:
            raise TokenError(f"tokens must be between 0 and {null}; these go from {low} to {high}")
    never, repeated = length, length + 1
    columns = tokens.new_full((length + 2, batch), null)  # `never` and `repeated` point to a null token, too
    columns[:length] = tokens.t()
    if length and not bool((columns[0] == null).all()):
        raise TokenError(f"each sequence must start with the null token {null}")
    if length > 1 and bool((columns[1:length] == null).any()):
        raise TokenError(f"the null token {null} may stand only at the start of a sequence")
    seen = torch.full((max(null, 1), batch), never, dtype=torch.int32, device=tokens.device)
    where = torch.full((length, batch), never, dtype=torch.int32, device=tokens.device)
    for position in range(1, length):
        letter = columns[position : position + 1]
        again = seen.gather(0, letter).ne_(never)  # ones and zeros
        seen.scatter_(0, letter, again.mul_(repeated - position).add_(position))
        torch.amin(seen, 0, out=where[position])
    return columns.gather(0, where.long()).t().contiguous()


class FirstUniqueChar:
    """Sequences of the task with their answers; slicing gives `(toks, labels)`.

    The arguments mean what they mean in the published problem, and the same arguments give the same sequences:
    `size` sequences of `seq_len` characters, the null character at the start included, over the letters of `vocab`.

    `vocab` of the dataset ends with the null character, so that token i is `vocab[i]`.

    Raises:
        ConfigError: a size below zero, no position, no letter, a letter twice, or the null character among the letters.
    """

    def __init__(self, size: int, vocab: Sequence[str] = LETTERS, seq_len: int = 20, seed: int = 42) -> None:
        letters = list(vocab)
        if size < 0 or seq_len < 1:
            raise ConfigError(f"a dataset needs size ≥ 0 and seq_len ≥ 1; asked for size={size}, seq_len={seq_len}")
        if not letters or len(set(letters)) < len(letters) or NULL in letters:
            raise ConfigError(f"vocab must be letters without repeats and without {NULL!r}, which is added; got {letters}")
        self.size, self.seq_len, self.seed = size, seq_len, seed
        self.vocab = [*letters, NULL]
        self.null = len(letters)
        rows = letters_of(size, seq_len - 1, self.null, torch.Generator().manual_seed(seed))
        self.toks: Tokens = torch.cat([torch.full((size, 1), self.null), rows], 1)
        self.labels: Tokens = first_unique(self.toks, self.null)

    @cached_property
    def str_toks(self) -> list[list[str]]:
        """The sequences, in characters."""
        return self._characters(self.toks)

    @cached_property
    def str_tok_labels(self) -> list[list[str]]:
        """The answers, in characters."""
        return self._characters(self.labels)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.toks[index], self.labels[index]

    def to(self, device: str | torch.device) -> FirstUniqueChar:
        """The same dataset, its tensors moved to `device`."""
        self.toks, self.labels = self.toks.to(device), self.labels.to(device)
        return self

    def __repr__(self) -> str:
        letters = "".join(self.vocab[:-1])
        return f"FirstUniqueChar(size={self.size}, vocab={letters!r}, seq_len={self.seq_len}, seed={self.seed})"

    def _characters(self, tokens: Tokens) -> list[list[str]]:
        return [[self.vocab[token] for token in row] for row in tokens.tolist()]

    @staticmethod
    def config(
        vocab: Sequence[str] = LETTERS, seq_len: int = 20, *, seed: int | None = 42, device: str | torch.device | None = None
    ) -> HookedTransformerConfig:
        """The configuration of the published model: two layers of three heads, attention only, LayerNorm.

        Split inputs and per-head results are among its sites. Making it reseeds Torch, NumPy and Python with `seed`,
        as the dialect has it; `seed=None` leaves them alone.
        """
        return HookedTransformerConfig(
            n_layers=2,
            n_heads=3,
            d_model=42,
            d_head=14,
            n_ctx=seq_len,
            d_vocab=len(vocab) + 1,
            d_vocab_out=len(vocab) + 1,
            attn_only=True,
            normalization_type="LN",
            use_attn_result=True,
            use_split_qkv_input=True,
            seed=seed,
            device=device,
            model_name="first-unique-char",
        )
