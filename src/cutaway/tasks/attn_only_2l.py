"""A small language model of two attention-only layers, in which induction heads form.

At first every second batch is short sequences that repeat with a random period. Nothing predicts a repeat but looking
back to what followed the same token before, so the pair of heads that does this (a previous-token head in layer 0, an
induction head in layer 1) forms within minutes instead of hours. Then nearly all batches are text.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, TokenError
from cutaway.model.transformer import Transformer
from cutaway.tasks.task import UNCOUNTED, Examples, Recipe

BOS = "<|bos|>"
KEPT_ASIDE = 20  # the last 1/20 of each file is for validation
SHORTEST_PERIOD = 4
REPEATED = (32, 32, 32, 64, 128)  # lengths of the sequences that repeat, in turn: short ones teach fastest
LOOKING_BACK = 21  # the epochs in which every second batch repeats; later every eighth, lest the model say everything twice
POSITIONS = 0.4  # the size of fresh positions; small ones are lost among the tokens, and no head finds its neighbour


@dataclass(frozen=True, eq=False)
class AttnOnly2L:
    """The task as `cutaway train` sees it; made with `AttnOnly2L.read(files)`."""

    files: tuple[Path, ...]
    texts: tuple[str, ...]
    vocab_size: int = 2000
    n_ctx: int = 128
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=30, steps=400, batch_size=16, lr=3e-3, weight_decay=0.01, betas=(0.9, 0.999), clip=1.0
        )
    )

    name = "attn-only-2l"
    summary = "the next token of text, with heads that continue what repeats (induction)"
    stored = torch.float16

    def __post_init__(self) -> None:
        tokenizer = byte_pairs(self.texts, self.vocab_size)
        coded = [torch.tensor(tokenizer.encode(text).ids) for text in self.texts]
        cuts = [len(ids) - len(ids) // KEPT_ASIDE for ids in coded]
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_training", torch.cat([ids[:cut] for ids, cut in zip(coded, cuts, strict=True)]))
        object.__setattr__(self, "_kept", torch.cat([ids[cut:] for ids, cut in zip(coded, cuts, strict=True)]))
        if len(self._kept) < self.n_ctx or tokenizer.get_vocab_size() < self.vocab_size:
            length = sum(map(len, self.texts))
            raise ConfigError(f"{length:,} characters of text are too few to learn from: give some hundred thousand or more")

    _tokenizer: Any = field(init=False, repr=False)
    _training: Int[Tensor, "length"] = field(init=False, repr=False)
    _kept: Int[Tensor, "length"] = field(init=False, repr=False)

    @classmethod
    def read(cls, files: Sequence[str | Path]) -> AttnOnly2L:
        """The task on these text files.

        Raises:
            ConfigError: a file is missing, or there is too little text.
            TokenError: a file is not UTF-8 text.
        """
        return cls(files=tuple(map(Path, files)), texts=tuple(plain(_read(Path(file))) for file in files))

    def config(self) -> HookedTransformerConfig:
        """Two layers of eight heads: attention only, positions for queries and keys alone, no norm."""
        return HookedTransformerConfig(
            n_layers=2,
            n_heads=8,
            d_model=256,
            d_head=32,
            n_ctx=self.n_ctx,
            d_vocab=self.vocab_size,
            attn_only=True,
            normalization_type=None,
            positional_embedding_type="shortformer",
            model_name=self.name,
        )

    def prepare(self, model: Transformer) -> None:
        """Begin with large positions, sines and cosines that training moves on from; leave the biases at zero for good."""
        with torch.no_grad():
            model.pos_embed.W_pos.copy_(waves(self.n_ctx, model.cfg.d_model) * POSITIONS)
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2].startswith("b_"):
                parameter.requires_grad_(False)

    def tokenizer(self) -> Any:
        """The byte-pair tokenizer, as `transformers` wraps it."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self._tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=self.n_ctx
        )

    def batches(self, epoch: int, steps: int, size: int, generator: torch.Generator) -> Iterator[Examples]:
        """Windows of the text, each after BOS, and between them as many tokens that repeat, in shorter sequences."""
        every = 2 if epoch <= LOOKING_BACK else 8
        lengths = itertools.cycle(min(length, self.n_ctx) for length in REPEATED)
        for step in range(steps):
            if step % every == every - 1:
                length = next(lengths)
                yield self.repeated(max(1, size * self.n_ctx // length), length, generator)
            else:
                yield _after_bos(self._windows(size, self.n_ctx, generator))

    def repeated(self, count: int, length: int, generator: torch.Generator) -> Examples:
        """Sequences that repeat, half of them random tokens and half pieces of text, each with a period of its own.

        Only repeats count.
        """
        period = torch.randint(SHORTEST_PERIOD, length // 2 + 1, (count, 1), generator=generator)
        place = torch.arange(length)[None]
        random = torch.randint(1, self.vocab_size, (count, length), generator=generator)
        nonsense = torch.rand(count, 1, generator=generator) < 0.5
        once = torch.where(nonsense, random, self._windows(count, length, generator))
        tokens, labels = _after_bos(once.gather(1, place % period))
        return Examples(tokens, labels.masked_fill(place < period, UNCOUNTED))

    def _windows(self, count: int, length: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
        starts = torch.randint(0, len(self._training) - length, (count, 1), generator=generator)
        return self._training[starts + torch.arange(length)]

    def validation(self) -> Examples:
        """Neighbouring windows of the text that was kept aside, 512 at most, spread over it."""
        windows = self._kept[: len(self._kept) // self.n_ctx * self.n_ctx].view(-1, self.n_ctx)
        return _after_bos(windows[:: -(-len(windows) // 512)])

    def fingerprint(self) -> dict[str, Any]:
        """What the examples depend on beside the seed."""
        text = hashlib.sha256("\0".join(self.texts).encode()).hexdigest()[:16]
        return {"text": text, "vocab_size": self.vocab_size, "n_ctx": self.n_ctx, "repeats": list(REPEATED)}

    def arguments(self) -> list[str]:
        """What the command line needs beside the task's name."""
        return [f"--text {shlex.quote(file.name)}" for file in self.files]

    def notes(self, model: Transformer) -> list[str]:
        """For the card: the data, a baseline, and the heads that were hoped for."""
        previous, induction = head_scores(model, self.repeated_twice(32))
        bigram = bigram_loss(self._training, self._kept, self.vocab_size)
        read = ", ".join(f"`{file.name}` ({len(text):,} characters)" for file, text in zip(self.files, self.texts, strict=True))
        return [
            f"Text: {read}; the last twentieth of each was kept aside for validation. `<unk>` marks were dropped and "
            "WikiText's spaces around punctuation closed.",
            f"Vocabulary: byte pairs, {self.vocab_size} tokens, learned from the same text; token 0 is `{BOS}`.",
            f"Every second batch of the first {LOOKING_BACK} epochs and every eighth of the others repeats, with as many tokens "
            f"in sequences of {', '.join(map(str, REPEATED))} in turn, half of them random tokens and half pieces of text, with "
            f"a random period from {SHORTEST_PERIOD} tokens to half of the sequence; of those only the repeats count.",
            f"Positions, which only queries and keys see, began as sines and cosines of size {POSITIONS} (root mean square); "
            "biases were held at zero. The weights are kept in float16.",
            f"A bigram model of the same text has validation loss {bigram:.4f}.",
            f"On {(self.n_ctx - 1) // 2} random tokens, twice, previous-token attention by head of layer 0: "
            f"{_listed(previous[0])}; induction attention by head of layer 1: {_listed(induction[1])}.",
        ]

    def repeated_twice(self, count: int, seed: int = 0) -> Int[Tensor, "batch pos"]:
        """BOS and then random tokens that fill half of the context, twice."""
        half = (self.n_ctx - 1) // 2
        tokens = torch.randint(1, self.vocab_size, (count, half), generator=torch.Generator().manual_seed(seed))
        return torch.cat([torch.zeros_like(tokens[:, :1]), tokens, tokens], 1)


def plain(text: str) -> str:
    """Text without WikiText's marks: no `<unk>`, no ` @-@ `, no spaces before punctuation."""
    text = text.replace("<unk>", "")
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" +([,.;:!?)%]|'s\b|n't\b)", r"\1", text).replace("( ", "(")
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", text))


def byte_pairs(texts: Sequence[str], size: int) -> Any:
    """A byte-level byte-pair tokenizer of `size` tokens, learned from the texts; it covers any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return tokenizer


def waves(length: int, width: int) -> Float[Tensor, "length width"]:
    """Sines and then cosines of the positions, of wavelengths from 2π to 20,000π; their mean square is 1.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5, in another order of columns.
    """
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], 1) * math.sqrt(2)


def bigram_loss(training: Int[Tensor, "length"], kept: Int[Tensor, "length2"], size: int) -> float:
    """Loss in nats of a bigram model, smoothed by the unigram model with the strength that suits it best."""
    pairs = torch.bincount(training[:-1] * size + training[1:], minlength=size * size).view(size, size).double()
    single = torch.bincount(training, minlength=size).double() + 0.1
    single /= single.sum()
    before, after = kept[:-1], kept[1:]
    seen, total = pairs[before, after], pairs.sum(1)[before]
    strengths = (3, 10, 30, 100, 300, 1000)
    return min(float(-((seen + k * single[after]) / (total + k)).log().mean()) for k in strengths)


def head_scores(
    model: Transformer, tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """Mean attention to the previous token, and from a repeated token to the one after its first occurrence.

    `tokens` are BOS and then a sequence twice.
    """
    half = (tokens.shape[1] - 1) // 2
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens.to(model.cfg.device), names_filter=names)
    patterns = torch.stack([cache[name] for name in names])  # layer batch head dest src
    previous = patterns.diagonal(-1, -2, -1).mean((1, -1))
    induction = patterns.diagonal(1 - half, -2, -1)[..., 2:].mean((1, -1))  # destinations in the second half
    return previous.cpu(), induction.cpu()


def _after_bos(windows: Int[Tensor, "batch pos"]) -> Examples:
    """Sequences that start with BOS, as long as the windows; every next token is a label."""
    tokens = torch.cat([torch.zeros_like(windows[:, :1]), windows[:, :-1]], 1)
    return Examples(tokens, windows)


def _listed(scores: Float[Tensor, "head"]) -> str:
    return ", ".join(f"{score:.2f}" for score in scores.tolist())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no text file at {file}") from None
    except UnicodeDecodeError as error:
        raise TokenError(f"{file} is not UTF-8 text: byte {error.start} cannot be read") from None
