"""Is this model loaded exactly? Our numbers against those of `transformers`, on the same text, in float32.

Compared are the residual stream before every block, what the final norm gives, the logits, and with processing the
log-probabilities. A difference is relative to the largest number of its kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway import tokens as text_tokens
from cutaway.errors import CheckpointError, ConfigError, UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import folders, hub, toys
from cutaway.weights import families
from cutaway.weights.processing import SkippedRewrite

TOLERANCE = 2e-5
TEXT = (
    "When Ada and Charles went to the market, Ada gave a basket of apples to Charles. He counted them twice: "
    "twelve in the morning, eleven at noon. The engine, 3.5 metres long, was waiting at home."
)
RANDOM = 64  # tokens, where there is no tokenizer


@dataclass(frozen=True)
class Difference:
    """How far two tensors that should be the same are apart."""

    place: str
    """`resid_pre 3`, `final norm`, `logits`, or `log-probabilities, processed`."""
    relative: float
    """The largest difference over the largest number."""
    absolute: float


@dataclass(frozen=True)
class Verification:
    """What was compared, in the order of the forward pass."""

    model: str
    family: str
    tokens: int
    """How many tokens the text has."""
    tolerance: float
    differences: tuple[Difference, ...]

    @property
    def first_apart(self) -> Difference | None:
        """Where a difference above the tolerance first appears; None: nowhere."""
        return next((one for one in self.differences if not one.relative <= self.tolerance), None)  # (a NaN is apart)

    @property
    def largest(self) -> Difference:
        """The largest difference."""
        return max(self.differences, key=lambda one: one.relative if one.relative == one.relative else float("inf"))

    @property
    def passed(self) -> bool:
        """Whether all is within the tolerance."""
        return self.first_apart is None

    def summary(self) -> str:
        """A few lines: each comparison, and the verdict."""
        width = max(len(one.place) for one in self.differences)
        lines = [f"{self.model} ({self.family}), {self.tokens} tokens, float32; tolerance {self.tolerance:g}"]
        for one in self.differences:
            mark = "" if one.relative <= self.tolerance else "  ←"
            lines.append(f"  {one.place:<{width}}  {one.relative:8.1e} of the largest  ({one.absolute:.1e}){mark}")
        first = self.first_apart
        largest = f"largest difference {self.largest.relative:.1e}, {self.largest.place}"
        lines.append(
            f"the same as transformers; {largest}" if first is None else f"NOT the same, first at {first.place}; {largest}"
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return asdict(self) | {"passed": self.passed}


def verify(
    model: str | PathLike[str],
    *,
    hf_model: Any = None,
    tokenizer: Any = None,
    text: str = TEXT,
    tolerance: float = TOLERANCE,
    device: str = "cpu",
    n_ctx: int | None = None,
) -> Verification:
    """Compare our numbers with those of `transformers`.

    Args:
        model: an id or a short name of the Hugging Face hub, or a folder.
        hf_model: a live `transformers` model instead; then `model` is only a name.
        text: what both read; without a tokenizer, fixed random tokens are read.
        n_ctx: as for `from_pretrained`.

    Raises:
        ConfigError: the model is bundled, or ours, so there is nothing to compare it with.
        CutawayError: whatever keeps it from being loaded.
    """
    place: Path | None = None
    if hf_model is None:
        place = _folder(model)
        if "model_type" not in folders.read_config(place):
            raise ConfigError(f"{model} is not a model of transformers, so there is nothing to compare it with")
        tokenizer = folders.read_tokenizer(place) if tokenizer is None else tokenizer
    name = str(model)
    source = {"hf_model": hf_model} if place is None else {}
    where = name if place is None else str(place)
    options: dict[str, Any] = {"tokenizer": tokenizer, "device": device, "n_ctx": n_ctx, **source}
    ours = HookedTransformer.from_pretrained_no_processing(where, **options)
    tokens = _tokens(ours, tokenizer, text).to(device)
    theirs = _reference(place, hf_model, tokens, device)
    differences = _compare(_layers(ours, tokens), theirs)
    family = ours.cfg.original_architecture or ""
    del ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedRewrite)
        processed = HookedTransformer.from_pretrained(where, **options)
    with torch.no_grad():
        found = {PROCESSED: processed(tokens).float().log_softmax(-1).cpu()}
    differences += _compare(found, {PROCESSED: theirs["logits"].log_softmax(-1)})
    return Verification(name, family, tokens.shape[1], tolerance, tuple(differences))


PROCESSED = "log-probabilities, processed"


def _folder(model: str | PathLike[str]) -> Path:
    """Where the files of a model are; fetched, where they are on the hub."""
    place = Path(model).expanduser()
    if place.is_dir():
        return place
    if str(model) in toys.names() or place.is_file():
        raise ConfigError(f"{model} is a model of our own, so there is nothing to compare it with")
    return hub.fetch(hub.official(str(model)))


def _tokens(ours: HookedTransformer, tokenizer: Any, text: str) -> Tensor:
    if tokenizer is not None:
        return text_tokens.to_tokens(ours.tokenizer, text, prepend_bos=ours.cfg.default_prepend_bos, n_ctx=ours.cfg.n_ctx)
    draw = torch.Generator().manual_seed(0)
    return torch.randint(ours.cfg.d_vocab, (1, min(RANDOM, ours.cfg.n_ctx)), generator=draw)


@torch.no_grad()
def _layers(ours: HookedTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """What we compute, by the place it is compared at."""
    found: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(ours.cfg.n_layers)]
    logits, cache = ours.run_with_cache(tokens, names_filter=names)
    for layer, name in enumerate(names):
        found[f"resid_pre {layer}"] = cache[name].float().cpu()
    final = ours.ln_final(ours(tokens, stop_at_layer=ours.cfg.n_layers))
    return found | {"final norm": final.float().cpu(), "logits": logits.float().cpu()}


@torch.no_grad()
def _reference(place: Path | None, hf_model: Any, tokens: Tensor, device: str) -> dict[str, Tensor]:
    """What `transformers` computes; its model is gone again when this returns."""
    if place is not None:
        from transformers import AutoModelForCausalLM

        try:
            hf_model = AutoModelForCausalLM.from_pretrained(str(place), dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(f"transformers cannot load {place}: {str(error).splitlines()[0]}") from error
    hf_model = hf_model.eval()
    out = hf_model.to(device)(tokens, output_hidden_states=True)
    if out.hidden_states is None:
        raise UnsupportedArchitecture(f"{type(hf_model).__name__} does not give its hidden states, so it cannot be compared")
    states = [state.float().cpu() for state in out.hidden_states]
    found = {f"resid_pre {layer}": state for layer, state in enumerate(states[:-1])}
    return found | {"final norm": states[-1], "logits": out.logits.float().cpu()}


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[Difference]:
    differences = []
    for place, ours in found.items():
        theirs = wanted[place]
        apart = float((ours - theirs).abs().max())
        differences.append(Difference(place, apart / max(float(theirs.abs().max()), 1e-30), apart))
    return differences


def known_models() -> dict[str, Any]:
    """What can be loaded by name: families and examples of each, bundled models, short names."""
    listed = [
        {"name": family.name, "model_type": family.model_type, "examples": list(family.examples)}
        for family in families.FAMILIES.values()
    ]
    bundled = toys.names()  # a bundled model goes before a short name
    aliases = {name: repo for name, repo in sorted(hub.ALIASES.items()) if name not in bundled}
    return {"families": listed, "bundled": bundled, "aliases": aliases}
