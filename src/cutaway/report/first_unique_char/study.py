"""The study behind the report on first unique characters: the model, its data, and runs that many sections read.

Everything is computed when it is first asked for, and once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cutaway import loading
from cutaway.analysis import attribution, head_decomposition, scales, token_heads, weight_circuits
from cutaway.analysis.shared import head_names
from cutaway.axes import Logits, Tokens
from cutaway.errors import ConfigError, WeightsMismatch
from cutaway.model.frozen_norms import norms_of
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.results import Means
from cutaway.sources import files, toys
from cutaway.sources.checkpoint import Checkpoint
from cutaway.tasks import FirstUniqueChar
from cutaway.tasks.first_unique_char import LETTERS, NULL, first_unique
from cutaway.weights import canonical, processing

NAME = "first-unique-char"
EXAMPLES = 5  # sequences that are shown one by one
FEW = 1000  # sequences that the splits by source look at


def read(checkpoint: str | Path | None) -> Checkpoint:
    """The checkpoint in a file, or the bundled one. A state dict is taken for the published model's shape.

    Raises:
        CheckpointError: no such file, or a damaged or unsafe one.
    """
    if checkpoint is None:
        return toys.find(NAME)
    place = Path(checkpoint)
    return files.read(place, None if place.suffix == ".safetensors" else FirstUniqueChar.config(seed=None))


def network(checkpoint: str | Path | None) -> tuple[Transformer, list[str]]:
    """The network, its weights processed, and its letters.

    Raises:
        WeightsMismatch: the weights do not fit; names the file and lists which.
        ConfigError: the model is of another shape than the report reads.
    """
    name = str(checkpoint or f"the bundled {NAME}")
    source = read(checkpoint)
    cfg = source.config
    letters = _letters(source, name)
    if (cfg.n_layers, cfg.attn_only, cfg.positional_embedding_type) != (2, True, "standard") or cfg.attention_dir != "causal":
        raise ConfigError(
            f"this report reads causal models of 2 attention-only layers with position embeddings; {name} has {cfg.n_layers} "
            f"{'layer' if cfg.n_layers == 1 else 'layers'}{'' if cfg.attn_only else ' with MLPs'}, and "
            f"{cfg.positional_embedding_type} positions"
        )
    cfg = copy.copy(cfg)
    cfg.device = "cpu"  # so small a model is in no hurry
    try:
        canonical.check(getattr(source.tensors, "shapes", source.tensors), cfg)
        weights = {key: source.tensors[key] for key in source.tensors}
        if not source.processed:
            weights, cfg = processing.process(weights, cfg)
        model = loading.build(Transformer, cfg, weights)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{name}: {error}") from error
    return model, letters


def _letters(source: Checkpoint, name: str) -> list[str]:
    """The letters that the model was trained on, in the order of their tokens.

    Raises:
        ConfigError: they are not known, or the null character is not the last token.
    """
    known = source.tokenizer
    size = source.config.d_vocab
    if known is None:
        if size != len(LETTERS) + 1:
            raise ConfigError(
                f"{name} has {size} tokens and does not say which; without a vocabulary the report expects the "
                f"{len(LETTERS) + 1} of {''.join(LETTERS)}{NULL}"
            )
        return list(LETTERS)
    letters = [str(known.decode([token])) for token in range(size)]
    if letters[-1] != NULL or any(len(letter) != 1 for letter in letters):
        raise ConfigError(f"{name} is no model of first unique characters: its last token should be {NULL!r}, all others letters")
    return letters[:-1]


@dataclass(frozen=True, eq=False)
class LettersStudy:
    """A model, its letters, and sequences to run it on."""

    model: Transformer
    letters: list[str]
    size: int
    seed: int
    name: str

    # The data.

    @cached_property
    def data(self) -> FirstUniqueChar:
        """The sequences and their answers."""
        drawn = FirstUniqueChar(self.size, self.letters, self.model.cfg.n_ctx, self.seed)
        return drawn.to(self.device)

    @property
    def device(self) -> torch.device:
        return self.model.W_U.device

    @property
    def vocab(self) -> list[str]:
        """What tokens are called; the null character is last."""
        return [*self.letters, NULL]

    @property
    def toks(self) -> Tokens:
        return self.data.toks

    @property
    def labels(self) -> Tokens:
        return self.data.labels

    @property
    def length(self) -> int:
        return self.model.cfg.n_ctx

    @property
    def null(self) -> int:
        return len(self.letters)

    @property
    def shown(self) -> list[int]:
        """The sequences that are shown one by one."""
        return list(range(min(EXAMPLES, self.size)))

    def names(self, layer: int) -> list[str]:
        """The heads of a layer."""
        return head_names(self.model.cfg, [layer])

    @property
    def heads(self) -> list[str]:
        return head_names(self.model.cfg)

    def words(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Tokens as characters."""
        return [self.vocab[token] for token in tokens.tolist()]

    def places(self, tokens: Int[Tensor, "pos"]) -> list[str]:
        """Characters with their positions, for axes."""
        return [f"{letter} {place}" for place, letter in enumerate(self.words(tokens))]

    def text(self, tokens: Int[Tensor, "pos"]) -> str:
        return "".join(self.words(tokens))

    def encode(self, text: str) -> Tokens:
        """One text as tokens, cut to the context."""
        known = {letter: token for token, letter in enumerate(self.vocab)}
        return torch.tensor([[known[letter] for letter in text][: self.length]], device=self.device)

    def answers(self, tokens: Tokens) -> Tokens:
        """The right answers of any sequences of the task."""
        return first_unique(tokens, self.null)

    # What stands where.

    @cached_property
    def repeated(self) -> Bool[Tensor, "batch pos"]:
        """Where the token has occurred before."""
        same = self.toks[:, :, None] == self.toks[:, None, :]
        return same.tril(-1).any(-1)

    @cached_property
    def occurrences(self) -> Int[Tensor, "batch pos token"]:
        """How often each token has occurred up to each position."""
        return torch.nn.functional.one_hot(self.toks, len(self.vocab)).cumsum(1)

    @cached_property
    def new_answer(self) -> Bool[Tensor, "batch pos"]:
        """Where the answer is the letter just read, and position 1, which has a mechanism of its own, is past."""
        found = (self.labels == self.toks) & (self.labels != self.null)
        return found & (torch.arange(self.length, device=self.device) > 1)

    # Runs.

    @cached_property
    def _run(self) -> tuple[Logits, ActivationCache]:
        return self.run(self.toks)

    @torch.no_grad()
    def run(self, tokens: Tokens) -> tuple[Logits, ActivationCache]:
        """Logits, and a cache of what the analyses read."""
        wanted = {*attribution.sites(self.model), *norms_of(self.model.cfg).values()}
        for layer in range(self.model.cfg.n_layers):
            wanted |= {*head_decomposition.sites(self.model, layer), *(f"blocks.{layer}.attn.hook_{part}" for part in "qkv")}
        logits, store = self.model.run_with_cache(tokens, names_filter=sorted(wanted))
        return logits, ActivationCache(store if isinstance(store, dict) else store.cache_dict, self.model)

    @property
    def logits(self) -> Logits:
        return self._run[0]

    @property
    def cache(self) -> ActivationCache:
        return self._run[1]

    @cached_property
    def few(self) -> ActivationCache:
        """The run on the first sequences only, for what is split by source."""
        return self.cache if self.size <= FEW else self.cache.apply_slice_to_batch_dim(slice(0, FEW))

    @cached_property
    def log_probs(self) -> Logits:
        return self.logits.log_softmax(-1)

    @cached_property
    def losses(self) -> Float[Tensor, "batch pos"]:
        """Minus the log-probability of the right answer."""
        return -self.log_probs.gather(-1, self.labels[..., None])[..., 0]

    @cached_property
    def guesses(self) -> Tokens:
        """The answers that the model gives."""
        return self.logits.argmax(-1)

    def pattern(self, head: str, cache: ActivationCache | None = None) -> Float[Tensor, "batch dest src"]:
        """The attention pattern of one head."""
        layer, one = map(int, head.split("."))
        kept: Tensor = (cache or self.cache)["pattern", layer]
        return kept[:, one]

    # Analyses that several sections share.

    @cached_property
    def scales(self) -> scales.NormScales:
        return scales.norm_scales(self.cache)

    @cached_property
    def detectors(self) -> token_heads.DuplicateDetectors:
        return token_heads.duplicate_detectors(self.model, scales=self.scales, tokens=range(len(self.letters)), vocab=self.vocab)

    @cached_property
    def responsible(self) -> token_heads.ResponsibleHeads:
        return token_heads.responsible_heads(self.model, scales=self.scales, tokens=range(len(self.letters)), vocab=self.vocab)

    @cached_property
    def full_circuits(self) -> dict[str, weight_circuits.WeightCircuit]:
        return token_heads.full_circuits(self.model, self.detectors, self.responsible, scales=self.scales, vocab=self.vocab)

    @cached_property
    def correct(self) -> attribution.Attribution:
        """Attribution to the right answer's logit."""
        return attribution.attribute(self.cache, targets=self.labels)

    @cached_property
    def duplicates(self) -> Means:
        """Attribution to the logit of the token just read, where it had occurred before, by token."""
        own = attribution.attribute(self.cache, targets=self.toks)
        return own.by_class(self.toks, self.vocab, where=self.repeated, axis="token")

    def path(self, *steps: str) -> weight_circuits.WeightCircuit:
        """The circuit of one path, with measured scales and this vocabulary."""
        return weight_circuits.path_circuit(self.model, " → ".join(steps), scales=self.scales, vocab=self.vocab)
