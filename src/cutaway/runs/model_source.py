"""A model as other processes find it: a name or a file, with the hash and the versions that they must have, too.

Weights do not travel: a model that exists only in memory is written once, beside the results, and loaded from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cutaway import __version__, loading
from cutaway.config import as_dtype
from cutaway.errors import WorkerRefused
from cutaway.model import kernels, placement
from cutaway.model.transformer import Transformer
from cutaway.runs.hashes import model_hash
from cutaway.sources import files
from cutaway.weights.canonical import without_buffers

AS_PUBLISHED: dict[str, Any] = {
    "fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False,
}  # fmt: skip
"""Options of `from_pretrained` that leave weights as they are."""

AS_USUAL = tuple((name, True) for name in AS_PUBLISHED)
"""The same, for weights rewritten as `from_pretrained` does it when nothing is said."""


def versions() -> dict[str, str]:
    """The versions on which bits depend."""
    return {"cutaway": __version__, "torch": str(torch.__version__)}


@dataclass(frozen=True)
class ModelSource:
    """Where workers find a model.

    Args:
        name: what `loading` finds it by, or a file.
        dtype: the precision it computes in, without `torch.`.
        device: where it computes: a device, or a plan of `accelerate` for all of them (`auto`, `balanced`, …).
        hash: of its weights and architecture.
        versions: of what computes.
        threads: of each worker: bits may depend on their number, so it is the same everywhere.
        stream: bytes of weights that may be in memory at once; None: all.
        options: of `from_pretrained` beside these, where the model is loaded by name: a checkpoint, rewrites, 8 bits.
        live: the model itself, in the process that has it; it does not travel.
    """

    name: str
    dtype: str
    device: str
    hash: str
    versions: tuple[tuple[str, str], ...]
    threads: int = 1
    stream: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    live: Transformer | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls, model: Transformer | str | Path, *, dtype: str = "float32", device: str = "cpu", threads: int = 1,
        stream: int | None = None, options: tuple[tuple[str, Any], ...] = (), look: loading.Look | None = None,
    ) -> ModelSource:  # fmt: skip
        """The source of a model in memory, or of one by name, which is loaded to learn its hash.

        Args:
            look: called with the configuration and the tokenizer, of a model by name before its weights are read.
        """
        name = "" if isinstance(model, Transformer) else str(model)
        if isinstance(model, Transformer) and model.found_by is not None:  # streamed or packed: workers do the same
            name, stream, options = model.found_by
        if not isinstance(model, Transformer):
            model = load(name, dtype, device, stream, options, look)
        elif look is not None:
            look(model.cfg, model.tokenizer)
        dtype = str(model.cfg.torch_dtype).removeprefix("torch.")
        where = device if name and device in placement.PLANS else str(model.cfg.device)
        known = tuple(versions().items())
        return cls(name, dtype, where, model_hash(model), known, threads, stream, options if name else (), model)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"live": None}

    def travelling(self, folder: Path) -> ModelSource:
        """The same without the model in memory; one that has no name is written into `folder` first."""
        if self.name:
            return replace(self, live=None)
        assert self.live is not None
        path = folder / f"model-{self.hash[:16]}.safetensors"
        if not path.exists():
            weights = without_buffers(self.live.state_dict())
            files.save(path, weights, self.live.cfg, tokenizer=self.live.tokenizer, processed=True)
        return replace(self, name=str(path.resolve()), live=None)

    def open(self) -> Transformer:
        """The model.

        Raises:
            WorkerRefused: the versions here are others, or the model that has the name here is another.
        """
        if self.live is not None:
            return self.live
        here = versions()
        for name, wanted in self.versions:
            if here[name] != wanted:
                raise WorkerRefused(f"a worker has {name} {here[name]} and the driver {wanted}; install the same on all machines")
        model = load(self.name, self.dtype, self.device, self.stream, self.options)
        found = model_hash(model)
        if found != self.hash:
            raise WorkerRefused(
                f"a worker found another model by the name {self.name!r}: its hash is {found}, and the driver's {self.hash}; "
                "give a file or a folder that all machines see"
            )
        return model

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute as every worker does: the same kernels, the same number of threads, no gradients."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with kernels.fixed(), torch.no_grad():
                yield
        finally:
            torch.set_num_threads(before)


def load(
    name: str, dtype: str, device: str, stream: int | None = None, options: Iterable[tuple[str, Any]] = (),
    look: loading.Look | None = None,
) -> Transformer:  # fmt: skip
    """A model by name, its weights as published unless `options` say more; with `stream`, with few of them in memory at once."""
    given = {**AS_PUBLISHED, **dict(options), **({"device_map": device} if device in placement.PLANS else {"device": device})}
    return loading.from_pretrained(Transformer, name, dtype=as_dtype(dtype), stream=stream, look=look, **given)
