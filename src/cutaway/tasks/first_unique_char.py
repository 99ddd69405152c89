"""First unique character: at each position, which letter so far is the first that has not been repeated?

A sequence starts with the null character `?`, which is also the answer where no letter is unique. Letters are
drawn uniformly by a generator of the dataset's own, so a seed gives the same sequences everywhere, and Torch's
global state is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cutaway.axes import Tokens
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, TokenError
from cutaway.model.transformer import Transformer
from cutaway.prompts import UNCOUNTED, Prompts
from cutaway.tasks.behaviour import Algorithmic, Sources, Where, equal_tokens, replaced_once
from cutaway.tasks.task import Examples, Recipe, loss_of
from cutaway.tokens import CharTokenizer

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
        drawn = letters_of(size, seq_len - 1, self.null, torch.Generator().manual_seed(seed))
        self.toks: Tokens = torch.cat([torch.full((size, 1), self.null), drawn], 1)
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


@dataclass(frozen=True)
class FirstUniqueCharTask(Algorithmic):
    """The task as `cutaway train` sees it, and as a behaviour."""

    vocab: tuple[str, ...] = LETTERS
    seq_len: int = 20
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=50, steps=400, batch_size=128, lr=3e-3))

    name = "first-unique-char"
    summary = "at each position, the first letter so far that has not been repeated ('?' where there is none)"

    @property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.vocab, NULL)

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.seq_len

    def config(self) -> HookedTransformerConfig:
        """The published model's configuration, without its global seed."""
        return FirstUniqueChar.config(self.vocab, self.seq_len, seed=None)

    def dataset(self, size: int = 1000, seed: int = 42) -> FirstUniqueChar:
        """A dataset of this task's letters and length."""
        return FirstUniqueChar(size, self.vocab, self.seq_len, seed)

    def draw(self, count: int, generator: torch.Generator) -> Tokens:
        null = len(self.vocab)
        drawn = letters_of(count, self.seq_len - 1, null, generator)
        return torch.cat([torch.full((count, 1), null), drawn], 1)

    def answers(self, tokens: Tokens) -> Tokens:
        return first_unique(tokens, len(self.vocab))

    def corrupt(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """One letter changed."""
        return replaced_once(tokens, 0, len(self.vocab), 1, self.seq_len, generator)

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        """What the answer is: the letter just read, an earlier one, or none."""
        none, just_read = prompts.labels == len(self.vocab), prompts.labels == prompts.tokens
        return {
            "was just read": prompts.answered & just_read & ~none,
            "is earlier": prompts.answered & ~just_read & ~none,
            "none": prompts.answered & none,
        }

    def sources(self, prompts: Prompts) -> dict[str, Sources]:
        earlier = torch.ones(self.seq_len, self.seq_len, dtype=torch.bool).tril()
        is_answer = prompts.labels[:, :, None] == prompts.tokens[:, None, :]
        return {
            "same letter, earlier": equal_tokens(prompts.tokens) & earlier.tril(-1),
            "the answer": is_answer & earlier,
            "null character": (torch.arange(self.seq_len) == 0).expand(len(prompts), self.seq_len, -1),
        }

    def features(self, prompts: Prompts) -> dict[str, Tokens]:
        again = (equal_tokens(prompts.tokens) & torch.ones(self.seq_len, self.seq_len, dtype=torch.bool).tril(-1)).any(2).long()
        again[:, 0] = UNCOUNTED
        return {"read before": again}

    def mistakes(self, prompts: Prompts, predicted: Tokens) -> dict[str, Where]:
        wrong, null = prompts.answered & (predicted != prompts.labels), len(self.vocab)
        return {
            "a letter where there is none": wrong & (prompts.labels == null),
            "none where there is a letter": wrong & (predicted == null),
            "another letter": wrong & (prompts.labels != null) & (predicted != null),
        }

    def validation(self) -> Examples:
        """Two thousand examples of a fixed seed that training draws are independent of."""
        return Examples(*self.dataset(size=2000, seed=2_000_042)[:])

    def tokenizer(self) -> CharTokenizer:
        """One token per character; text gets the null character in front."""
        return CharTokenizer(self.vocabulary, bos_token=NULL)

    def fingerprint(self) -> dict[str, Any]:
        """What the examples depend on beside the seed."""
        return {"vocab": list(self.vocab), "seq_len": self.seq_len}

    def notes(self, model: Transformer) -> list[str]:
        """For the card: the figures on the dataset of the published problem."""
        tokens, labels = (part.to(model.cfg.device) for part in self.dataset()[:])
        with torch.no_grad():
            logits = model(tokens)
        correct = logits.softmax(-1).gather(-1, labels[..., None])
        return [
            f"Letters: `{''.join(self.vocab)}`, and `{NULL}` at the start and where no letter is unique.",
            f"On `FirstUniqueChar(size=1000, seed=42)`: loss {float(loss_of(logits, labels)):.4f}, mean probability of the "
            f"right answer {float(correct.mean()):.4f}, smallest {float(correct.min()):.4f}.",
        ]
