"""Cutaway opens transformers up: load a model, run it, read any activation, change any activation.

This is the front door: users may rely on the names below, everything else may move. Each is imported when first used,
so that `import cutaway` costs what `import torch` costs. docs/api.md says what each one is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any

__version__ = "0.1.0"

_BY_MODULE = {
    # models
    "hooked_transformer": "HookedTransformer",
    "config": "HookedTransformerConfig",
    "tokens": "CharTokenizer",
    "model.hook_points": "HookPoint",
    "model.hooked_root": "HookedRootModule",
    "prompts": "Prompts",
    "tasks": "behaviour behaviour_names",
    # runs
    "runs.activation_cache": "ActivationCache",
    "runs.editing": "edited run",
    "model.factored_matrix": "FactoredMatrix",
    "runs.generation": "Sampling",
    "runs.sweep": "SweepOptions sweep",
    "runs.sweep.planning": "plan",
    "verification": "verify",
    "runs.differences": "difference",
    # questions, by their verbs
    "analysis.ablation": "ablate ablate_heads",
    "analysis.attribution": "attribute attribute_all_tokens",
    "analysis.head_composition": "composition copying",
    "analysis.head_decomposition": "logits_by_source outputs_by_component scores_by_key",
    "analysis.heads": "average_over head_scores on_random_repeats random_repeats",
    "analysis.hill_climbing": "hill_climb",
    "analysis.logit_lens": "lens",
    "analysis.neurons": "max_activating_texts",
    "analysis.patching": "patch",
    "analysis.paths": "path_patch",
    "analysis.predictions": "likeliest_tokens predict",
    "analysis.scales": "norm_scales",
    "analysis.score_pathways": "pathways",
    "analysis.steering": "Steer SteeringVector activation_addition contrast_vectors steer",
    "analysis.steering_effects": "dose_response separability steered_texts steering_target",
    "analysis.token_heads": "duplicate_detectors responsible_heads",
    "analysis.weight_circuits": "ov_circuit path_circuit qk_circuit",
    # circuits
    "programs.compiler": "compile_program",
    "circuits.attribution": "edge_attribution",
    "circuits.circuit": "Circuit",
    "circuits.effects": "edge_effects",
    "circuits.finding": "circuit_for",
    "circuits.measuring": "CircuitRunner run_circuit",
    "circuits.scoring": "faithfulness recovery",
    "circuits.searching": "find_circuit",
    "circuits.stable_edges": "stability",
    # many models and many prompts
    "many.across_models": "across",
}
_HOME = {name: f"cutaway.{module}" for module, names in _BY_MODULE.items() for name in names.split()}
_HOME["load"] = "cutaway.runs.result_files"
_CALLED = {"load": "load_result"}  # public name → its name at home
_MODULES = {
    "collect": "cutaway.collect",
    "edits": "cutaway.runs.edits",
    "errors": "cutaway.errors",
    "executors": "cutaway.executors",
    "explain": "cutaway.explain",
    "grids": "cutaway.runs.grids",
    "metrics": "cutaway.runs.metrics",
    "patching": "cutaway.analysis.patching",
    "programs": "cutaway.programs",
    "records": "cutaway.records",
    "report": "cutaway.report",
    "tasks": "cutaway.tasks",
    "view": "cutaway.view",
    "workbench": "cutaway.workbench",
}
__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), _CALLED.get(name, name))
    if name in _MODULES:
        return import_module(_MODULES[name])
    from cutaway.errors import nearest

    raise AttributeError(f"module 'cutaway' has no attribute {name!r}{nearest(name, __all__)}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _FrontDoor:
    """`from cutaway.metrics import loss` and its kind: the modules of the front door, wherever they are."""

    def __init__(self) -> None:
        self.own: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, last = name.rpartition(".")
        return ModuleSpec(name, self) if package == __name__ and last in _MODULES else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        module = import_module(_MODULES[spec.name.rpartition(".")[2]])
        self.own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self.own.pop(module.__spec__.name)  # it stays what it is: this is another name for it


sys.meta_path.append(_FrontDoor())  # asked last, so only for names that no file has
