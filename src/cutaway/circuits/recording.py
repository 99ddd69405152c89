"""Records of circuits: a folder with the circuit, its prompts and metric, and what it gave; it runs again and checks itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cutaway import writing
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.measuring import CircuitRunner
from cutaway.errors import NotReadable
from cutaway.model.transformer import Transformer
from cutaway.runs.metrics import Metric
from cutaway.runs.written import Writer, read
from cutaway.writing import check_folder, write_json

CIRCUIT, METRIC, TENSORS, RESULT = "circuit.json", "metric.json", "circuit.safetensors", "result.json"
BOUND = 1e-3  # of the largest value: what other processors and versions may round


@dataclass(frozen=True)
class Replayed:
    """A circuit that ran again.

    Args:
        difference: the largest difference of an example's metric, relative to the largest value.
        recorded, now: the mean over examples.
    """

    folder: str
    difference: float
    recorded: float
    now: float

    @property
    def agrees(self) -> bool:
        """Whether the numbers are those recorded, up to rounding."""
        return self.difference <= BOUND

    def summary(self) -> str:
        """One sentence."""
        verdict = "the circuit gives what was recorded" if self.agrees else "the circuit gives OTHER numbers than were recorded"
        numbers = f"mean {self.now:.4g}, recorded {self.recorded:.4g}; largest difference {self.difference:.1e}"
        return f"{self.folder}: {verdict}: {numbers}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self) | {"agrees": self.agrees}


def check_free(folder: Path | str) -> Path:
    """A folder that holds no circuit yet.

    Raises:
        ConfigError: it cannot be a folder.
        NotReadable: it holds one.
    """
    found = check_folder(folder)
    if (found / RESULT).exists():  # the last file of a record: without it a run was killed, whose files this one replaces
        raise NotReadable(f"{found} holds a circuit already; give another folder, or remove this one first")
    return found


def write(folder: Path, circuit: Circuit, metric: Metric, values: Tensor, model: str, numbers: Mapping[str, Any]) -> None:
    """Write a circuit that was found, with what it gave for each of its prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer()
    about = {"model": model, "metric": writer.write(metric)}
    circuit.save(folder / CIRCUIT, replace=True)
    writing.write(folder / TENSORS, save({"values": values, **{name: one.contiguous() for name, one in writer.tensors.items()}}))
    write_json(folder / METRIC, json.dumps(about, indent=1) + "\n")
    write_json(folder / RESULT, json.dumps(dict(numbers), indent=1, ensure_ascii=False) + "\n")


def model_of(folder: Path) -> str:
    """The name of the model that a record was made with.

    Raises:
        NotReadable: the folder lacks parts, or they are damaged.
    """
    return str(_about(folder)["model"])


def replay(folder: Path, model: Transformer) -> Replayed:
    """Run a recorded circuit again on its prompts.

    Raises:
        NotReadable: the folder lacks parts, or they are damaged.
        ShapeError: another model.
    """
    about, tensors = _about(folder), _tensors(folder)
    circuit = Circuit.load(folder / CIRCUIT, model)
    prompts = circuit.prompts
    metric = read(about["metric"], tensors)
    runner = CircuitRunner(
        model, prompts["clean"], prompts.get("corrupted"), metric, ablation=circuit.ablation, over=prompts.get("over")
    )
    values, recorded = runner.values(circuit.edges), tensors["values"]
    if values.shape != recorded.shape:
        raise NotReadable(f"{folder} holds {len(recorded)} values for {len(values)} prompts")
    scale = max(float(recorded.abs().max()), 1e-4)
    return Replayed(str(folder), float((values - recorded).abs().max()) / scale, float(recorded.mean()), float(values.mean()))


def _about(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / METRIC).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise NotReadable(f"{folder} is no record of a circuit that can run again: {METRIC}: {error}") from None
    if not isinstance(found, dict) or {"model", "metric"} - set(found):
        raise NotReadable(f"{folder} is no record of a circuit that can run again: {METRIC} lacks the model or the metric")
    return found


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise NotReadable(f"{folder} is no record of a circuit that can run again: {TENSORS}: {error}") from None
    if "values" not in found:
        raise NotReadable(f"{folder} is no record of a circuit that can run again: {TENSORS} lacks the values")
    return found
