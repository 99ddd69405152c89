"""A circuit is a value: edges of one model, with what they were found by. It is stored, compared, run, and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cutaway.circuits.graph import Edges, Graph
from cutaway.circuits.measuring import run_circuit
from cutaway.circuits.only import OnlyCircuit
from cutaway.circuits.pairs import one_ablation
from cutaway.errors import ShapeError
from cutaway.model.components import parse_head
from cutaway.model.transformer import Transformer
from cutaway.runs.edits import Edit
from cutaway.runs.hashes import model_hash
from cutaway.view import Figure, circuit_layers
from cutaway.writing import check_new, write_json

FORMAT = "cutaway circuit 1"


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some of a model's edges.

    Args:
        graph: the model's.
        edges: `[writer, reader]`.
        effects: the score or effect of each edge, `[writer, reader]`; None: unknown.
        model: the hash of the model that it was found in; empty: not bound to one.
        ablation: what the other edges carry.
        about: how it was found.
        prompts: what it was found on, as tokens: `clean`, `corrupted`, and `over`, which means are over.
    """

    graph: Graph
    edges: Edges
    effects: Tensor | None = None
    model: str = ""
    ablation: str = "resample"
    about: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.edges.shape != self.graph.mask.shape:
            raise ShapeError(f"a circuit of {tuple(self.edges.shape)} edges in a graph of {tuple(self.graph.mask.shape)}")
        object.__setattr__(self, "edges", self.edges.cpu() & self.graph.mask)

    def __repr__(self) -> str:
        return f"<Circuit of {self.size} of {self.graph.size} edges, {self.ablation} ablation; .summary(), .figure(), .pairs()>"

    def _repr_html_(self) -> str:
        """The summary, and the figure under it."""
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>{self.figure()._repr_html_()}"

    @classmethod
    def of(cls, model: Transformer, edges: Edges | Iterable[tuple[str, str]], **given: Any) -> Circuit:
        """A circuit of a model, from a mask or from (writer, reader) pairs."""
        graph = Graph(model.cfg)
        if not isinstance(edges, Tensor):
            mask = torch.zeros_like(graph.mask)
            for writer, reader in edges:
                mask[graph.edge(writer, reader)] = True
            edges = mask
        return cls(graph, edges, model=model_hash(model), **given)

    @property
    def size(self) -> int:
        """How many edges."""
        return int(self.edges.sum())

    @property
    def share(self) -> float:
        """How many of all edges."""
        return self.size / self.graph.size

    def pairs(self) -> list[tuple[str, str]]:
        """The edges as (writer, reader), strongest first where effects are known."""
        places = self.edges.nonzero().tolist()
        if self.effects is not None:
            size = self.effects.abs().nan_to_num(0)
            places.sort(key=lambda place: -float(size[place[0], place[1]]))
        return [(self.graph.writers[writer], self.graph.readers[reader]) for writer, reader in places]

    def nodes(self) -> dict[str, float]:
        """Node → the sum of the sizes of its edges' effects (of their number, where effects are unknown), largest first."""
        weight = self.edges.double() if self.effects is None else self.effects.abs().nan_to_num(0).double().cpu() * self.edges
        found: dict[str, float] = {}
        for name, value in zip(self.graph.writers, weight.sum(1).tolist(), strict=True):
            found[name] = found.get(name, 0.0) + value
        for name, value in zip(self.graph.readers, weight.sum(0).tolist(), strict=True):
            node = self.graph.node_of(name)
            found[node] = found.get(node, 0.0) + value
        return dict(sorted(((name, value) for name, value in found.items() if value), key=lambda one: -one[1]))

    def logits(self, model: Transformer, clean: Any, corrupted: Any = None, *, over: Any = None) -> Tensor:
        """The logits `[batch, pos, d_vocab]` of this circuit alone.

        Raises:
            ShapeError: it was found in another model.
        """
        self.check(model)
        return run_circuit(model, clean, corrupted, self.edges, ablation=self.ablation, over=over)

    def only(
        self, clean: Tensor | None = None, corrupted: Tensor | None = None, *, over: Tensor | None = None,
        ablation: str | None = None,
    ) -> OnlyCircuit:  # fmt: skip
        """Edits that leave of the model only this circuit: `run(model, tokens, edits=circuit.only())`.

        They go wherever edits go (`run`, `run_with_cache`, `generate`, `sweep`), together with others, which then act within the
        circuit; `with edited(model, circuit): …` puts them around anything else (`patch`, `ablate_heads`).

        Args:
            clean, corrupted: tokens of prompts and their counterparts, which edges outside resample from; None: those that the
                circuit was found on. A generation goes on in the counterpart as it does in the prompt.
            over: tokens that means are over; None: the same.
            ablation: what edges outside carry, where it is another than the circuit's.

        Raises:
            ConfigError: an ablation that is not known.
            ShapeError: the ablation needs prompts, and none were given; or they do not align.
        """
        kind = one_ablation(self.ablation if ablation is None else ablation)
        clean, corrupted = (self.prompts.get("clean"), self.prompts.get("corrupted")) if clean is None else (clean, corrupted)
        over = self.prompts.get("over", clean) if over is None else over
        if kind == "resample":
            if clean is None or corrupted is None:
                raise ShapeError("resampling needs prompts and their counterparts: circuit.only(clean, corrupted)")
            if clean.shape != corrupted.shape:
                raise ShapeError(f"{tuple(clean.shape)} prompts and counterparts of {tuple(corrupted.shape)} do not align")
        if kind.startswith("mean") and over is None:
            raise ShapeError("means need prompts that they are over: circuit.only(over=tokens)")
        return OnlyCircuit(self.graph, self.edges, kind, clean, corrupted, over, self.check)

    def edits_for(self, model: Transformer) -> list[Edit]:
        """A circuit stands for its own edits, `only()`."""
        return self.only().edits_for(model)

    def check(self, model: Transformer) -> None:
        """Refuse another model than the circuit's own."""
        same = Graph(model.cfg)
        if same.writers != self.graph.writers or same.readers != self.graph.readers:
            raise ShapeError(
                f"this circuit is one of {len(self.graph.writers)} writers and {len(self.graph.readers)} readers; the model has "
                f"{len(same.writers)} and {len(same.readers)}"
            )
        if self.model and model_hash(model) != self.model:
            raise ShapeError(
                "this circuit was found in another model: the weights differ (also where they were rewritten otherwise)"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain lists and texts, for `json.dumps`."""
        effects = None
        if self.effects is not None:
            effects = [
                round(float(self.effects[place[0], place[1]]), 8) for place in (self.graph.edge(*pair) for pair in self.pairs())
            ]
        return {
            "format": FORMAT, "model": self.model, "ablation": self.ablation, "about": dict(self.about), "edges": self.pairs(),
            "effects": effects, "prompts": {name: tokens.tolist() for name, tokens in self.prompts.items()},
        }  # fmt: skip

    def save(self, path: Path | str, *, replace: bool = False) -> None:
        """Write it as JSON.

        Raises:
            AlreadyThere: the file exists, and `replace` is off.
        """
        write_json(check_new(path, replace=replace), json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str, model: Transformer) -> Circuit:
        """A circuit that was written, for its model.

        Raises:
            ShapeError: no circuit, or one of another model.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ShapeError(f"{path} is no circuit: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ShapeError(f'{path} is no circuit: the field "format" is not {FORMAT!r}')
        graph = Graph(model.cfg)
        edges, effects = torch.zeros_like(graph.mask), torch.full(graph.mask.shape, torch.nan)
        for number, (writer, reader) in enumerate(data["edges"]):
            place = graph.edge(writer, reader)
            edges[place] = True
            if data["effects"] is not None:
                effects[place] = data["effects"][number]
        prompts = {name: torch.tensor(tokens) for name, tokens in data.get("prompts", {}).items()}
        known = None if data["effects"] is None else effects
        made = cls(graph, edges, known, data["model"], data["ablation"], data["about"], prompts)
        made.check(model)
        return made

    def figure(self, model: Transformer | None = None, sure: Tensor | None = None) -> Figure:
        """Layers up, components across, edges as wide as their effects.

        Args:
            model: the circuit's own; with it, a click on an edge shows the attention patterns of the heads at its ends, on the
                first of the prompts that the circuit was found on.
            sure: how often each edge is chosen, `[writer, reader]`, as `stability` says.

        Raises:
            ShapeError: there is no edge, or another model.
        """
        pairs = self.pairs()
        places = tuple(torch.tensor([self.graph.edge(*pair) for pair in pairs]).reshape(-1, 2).T)
        effects = torch.ones(len(pairs)) if self.effects is None else self.effects.cpu()[places]
        options: dict[str, Any] = {"sure": None if sure is None else sure.cpu()[places]}
        tokens = self.prompts.get("clean", self.prompts.get("over"))
        if model is not None and tokens is not None:
            self.check(model)
            options |= _patterns(model, tokens[0], self.nodes())
        title, value = f"a circuit of {self.size} edges", "effect" if self.effects is None else "score"
        return circuit_layers(pairs, effects, title=title, value_name=value, **options)

    def summary(self) -> str:
        lines = [f"a circuit of {self.size} of {self.graph.size} edges ({self.share:.2%}), {len(self.nodes())} nodes"]
        for writer, reader in self.pairs()[:10]:
            effect = "" if self.effects is None else f": {float(self.effects[self.graph.edge(writer, reader)]):+.4g}"
            lines.append(f"  {writer} → {reader}{effect}")
        return "\n".join(lines)


def _patterns(model: Transformer, tokens: Tensor, nodes: Iterable[str]) -> dict[str, Any]:
    """Patterns of these heads on one prompt, and its tokens."""
    heads = [parse_head(node, model.cfg) for node in nodes if node.replace(".", "").isdigit()]
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer, _ in heads}
    with torch.no_grad():
        _, cache = Transformer.run_with_cache(model, tokens[None].to(model.W_U.device), names_filter=list(names.values()))
    words = [str(one) if model.tokenizer is None else str(model.tokenizer.decode([one])) for one in tokens.tolist()]
    patterns = {f"{layer}.{head}": cache[names[layer]][0, head] for layer, head in heads}
    return {"patterns": patterns, "tokens": words, "patterns_of": "Patterns of the whole model on the first prompt."}


def jaccard(one: Bool[Tensor, "*edge"], other: Bool[Tensor, "*edge"]) -> float:
    """Shared edges over all edges of both; 1 for two empty ones."""
    both = int((one | other).sum())
    return 1.0 if not both else int((one & other).sum()) / both
