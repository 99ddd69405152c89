"""Runs of a workbench: each layer's residual stream is kept, so that the next run begins where it first differs.

A `KeptRun` run knows the stream before every layer. Any other activation is computed again when somebody looks at it, by that one
block. A run with switches starts from the clean run or from the last run with switches, whichever shares more layers with it.
Between layers `between` is called, which may raise to stop a run that nobody waits for any more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.model import sites
from cutaway.model.hook_points import KeepActivation
from cutaway.model.positions import Stream
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Edit
from cutaway.runs.plain_runs import hooks_of

Between = Callable[[], None]
Signature = tuple[Any, ...]
REMEMBERED = 2**28  # bytes of activations that a run holds beside its streams
BEHIND = 10**9  # the part of a network behind its layers


def _part(name: str) -> int:
    """The layer of a site; -1 before the layers."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else BEHIND if name.startswith("ln_final.") else -1


def nothing() -> None:
    """No interruption."""


@dataclass(eq=False)
class KeptRun(Mapping[str, Tensor]):
    """One run of one prompt, and the edits that were made in it: site → activation.

    Args:
        tokens: `[1, pos]`.
        resid: the stream before each layer and after the last, `[1, pos, d_model]` each.
        edits: layer → what was changed there.
        signature: layer → what tells these changes from others.
    """

    model: Transformer
    tokens: Int[Tensor, "1 pos"]
    stream: Stream
    resid: list[Float[Tensor, "1 pos d_model"]]
    edits: dict[int, list[Edit]] = field(default_factory=dict)
    signature: dict[int, Signature] = field(default_factory=dict)
    _sites: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    _rows: dict[int, Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # several threads look at a run

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def __contains__(self, name: object) -> bool:
        """Per-head results are made from `hook_z` by whoever needs them."""
        return isinstance(name, str) and not name.endswith("hook_result")

    def __getitem__(self, name: str) -> Tensor:
        return self.site(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.model.sites if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @torch.no_grad()
    def site(self, name: str) -> Tensor:
        """An activation of this run, by its full name; its block runs again for it."""
        with self._lock:
            if name in self._sites:
                self._sites.move_to_end(name)
                return self._sites[name]
        value = self.gather([name])[name]
        with self._lock:
            self._remember(name, value)
        return value

    @torch.no_grad()
    def gather(self, names: Sequence[str], between: Between = nothing) -> dict[str, Tensor]:
        """Several activations; each block runs once for all that are asked of it."""
        store: dict[str, Tensor] = {}
        keep = KeepActivation(store)
        for part, some in groupby(sorted(names, key=_part), key=_part):
            between()
            hooks: list[tuple[str, Any]] = [(name, keep) for name in some]
            with self.model.hooks([*self._hooks(part), *hooks] if 0 <= part < self.model.cfg.n_layers else hooks):
                self.model.runs += 1
                if part < 0:
                    self.model.embed_tokens(self.tokens, self.stream)
                elif part == BEHIND:
                    self.model.ln_final(self.resid[-1])
                else:
                    self.model.run_blocks(self.resid[part], self.stream, part, part + 1)
        return store

    def _remember(self, name: str, value: Tensor) -> None:
        """Hold an activation, and drop those that were not looked at for longest."""
        self._sites[name] = value
        while len(self._sites) > 1 and sum(one.nbytes for one in self._sites.values()) > REMEMBERED:
            self._sites.popitem(last=False)

    def _hooks(self, layer: int) -> list[tuple[str, Any]]:
        return _hooks(self.model, self.edits.get(layer, []), self.length)

    def attention(self, layer: int) -> Float[Tensor, "head dest src"]:
        """The patterns of a layer."""
        return self.site(f"blocks.{layer}.attn.hook_pattern")[0]

    @torch.no_grad()
    def logits(self, at: int) -> Float[Tensor, "1 d_vocab_out"]:
        """The logits after one position."""
        row = self._rows.get(at)
        if row is None:
            row = self._rows[at] = self.model.logits_of(self.resid[-1][:, at])
        return row

    @torch.no_grad()
    def lens(self, at: int, start: int = 0) -> Float[Tensor, "layer d_vocab_out"]:
        """What the stream before each layer from `start` on, and at the end, would predict after one position."""
        return self.model.logits_of(torch.cat([one[:, at] for one in self.resid[start:]]))


@torch.no_grad()
def run_clean(model: Transformer, tokens: Int[Tensor, "1 pos"], between: Between = nothing) -> KeptRun:
    """A run without edits."""
    model.runs += 1
    stream = model.prepare(tokens)
    resid, stream = model.embed_tokens(tokens, stream)
    kept = KeptRun(model, tokens, stream, [resid])
    _go_on(kept, 0, between)
    return kept


@torch.no_grad()
def run_edited(
    clean: KeptRun, edits: Sequence[tuple[Signature, Edit]], last: KeptRun | None = None, between: Between = nothing
) -> KeptRun:
    """A run with edits, each with what tells it from others. It begins where it differs from `clean` and `last`.

    Raises:
        ShapeError, UnknownSite: an edit does not fit.
    """
    model = clean.model
    by_layer: dict[int, list[Edit]] = {}
    signature: dict[int, Signature] = {}
    for mark, edit in edits:
        site = sites.resolve(edit.site, model.hook_dict, model.cfg.n_layers)
        layer = int(site.split(".")[1])
        by_layer.setdefault(layer, []).append(edit)
        signature[layer] = (*signature.get(layer, ()), mark)
    bases = [clean] if last is None or last.tokens is not clean.tokens else [clean, last]
    start, base = max(((_shared(one.signature, signature, model.cfg.n_layers), number) for number, one in enumerate(bases)))
    kept = KeptRun(model, clean.tokens, clean.stream, bases[base].resid[: start + 1], by_layer, signature)
    _go_on(kept, start, between)
    return kept


def _shared(one: dict[int, Signature], other: dict[int, Signature], layers: int) -> int:
    """How many layers two runs share, from the first on."""
    return next((layer for layer in range(layers) if one.get(layer) != other.get(layer)), layers)


def _go_on(kept: KeptRun, start: int, between: Between) -> None:
    """Run from a layer to the end."""
    model = kept.model
    for layer in range(start, model.cfg.n_layers):
        between()
        with model.hooks(kept._hooks(layer)):
            model.runs += 1
            kept.resid.append(model.run_blocks(kept.resid[layer], kept.stream, layer, layer + 1))


def _hooks(model: Transformer, edits: Sequence[Edit], length: int) -> list[tuple[str, Any]]:
    table = sites.table(model.cfg) if edits else {}
    return hooks_of([edit.bind(model.cfg, 1, length, table) for edit in edits], {}, 0, 1)
