"""Checkpoints of first unique characters: a file of weights, or the bundled model, as a network with its letters."""

from __future__ import annotations

import copy
from pathlib import Path

from cutaway import loading
from cutaway.errors import ConfigError, WeightsMismatch
from cutaway.model.transformer import Transformer
from cutaway.sources import files, toys
from cutaway.sources.checkpoint import Checkpoint
from cutaway.tasks.first_unique_dataset import LETTERS, NULL, FirstUniqueChar
from cutaway.weights import canonical, processing

NAME = "first-unique-char"


def network(checkpoint: str | Path | None) -> tuple[Transformer, list[str]]:
    """The network, its weights processed, and its letters. A state dict is taken for the published model's shape.

    Raises:
        WeightsMismatch: the weights do not fit; names the file and lists which.
        ConfigError: the model is of another shape than the report reads.
    """
    name = str(checkpoint or f"the bundled {NAME}")
    own = checkpoint is not None and Path(checkpoint).suffix == ".safetensors"
    source = toys.find(NAME) if checkpoint is None else files.read(
        Path(checkpoint), None if own else FirstUniqueChar.config(seed=None)
    )  # fmt: skip
    cfg, letters = copy.copy(source.config), _letters(source, name)
    if (cfg.n_layers, cfg.attn_only, cfg.positional_embedding_type) != (2, True, "standard") or cfg.attention_dir != "causal":
        raise ConfigError(
            f"this report reads causal models of 2 attention-only layers with position embeddings; {name} has {cfg.n_layers} "
            f"{'layer' if cfg.n_layers == 1 else 'layers'}{'' if cfg.attn_only else ' with MLPs'}, and "
            f"{cfg.positional_embedding_type} positions"
        )
    cfg.device = "cpu"  # so small a model is in no hurry
    try:
        canonical.check(getattr(source.tensors, "shapes", source.tensors), cfg)
        weights = {key: source.tensors[key] for key in source.tensors}
        if not source.processed:
            weights, cfg = processing.process(weights, cfg)
        return loading.build(Transformer, cfg, weights), letters
    except WeightsMismatch as error:
        raise WeightsMismatch(f"{name}: {error}") from error


def _letters(source: Checkpoint, name: str) -> list[str]:
    """The letters that the model was trained on, in the order of their tokens."""
    known, size = source.tokenizer, source.config.d_vocab
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
