"""Which fields of a config the installed `transformers` reads when it builds and runs a family, from its source.

The source is followed from a family's model class and configuration class: names of the same file, and imports of the
files in `FOLLOWED`. A read is `config.name`, `getattr(config, "name")` or `hasattr(config, "name")` of anything that is
called like a config; in configuration classes also `self.name` and `kwargs.pop("name")`.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

ROOT = Path(transformers.__file__).parent
FOLLOWED = (
    "activations", "cache_utils", "configuration_utils", "generation.utils", "integrations.eager_paged",
    "integrations.heterogeneity.configuration_utils", "integrations.moe", "integrations.sdpa_attention", "masking_utils",
    "modeling_attn_mask_utils", "modeling_flash_attention_utils", "modeling_layers", "modeling_rope_utils", "modeling_utils",
    "pytorch_utils", "utils.output_capturing",
)  # fmt: skip
"""Shared modules; what else is imported has no config in its hands, or is about other devices, training and quantisation."""

CONFIGS = {"config", "cfg", "text_config", "decoder_config", "layer_config", "attn_config", "base_config"}
"""What configs are called where they are read."""

Node = ast.AST


@dataclass(frozen=True)
class Module:
    """A file of `transformers`: its top-level definitions, and what each imported name stands for."""

    name: str
    definitions: dict[str, list[Node]]
    imports: dict[str, tuple[str, str]]


@functools.cache
def module(name: str) -> Module:
    path = ROOT / (name.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions: dict[str, list[Node]] = {}
    imports = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = name.split(".")[: -node.level]
            source = ".".join([*package, *(node.module or "").split(".")]).strip(".")
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    for node in _top_level(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    definitions.setdefault(target.id, []).append(node)
    return Module(name, definitions, imports)


def _top_level(tree: ast.Module) -> Iterator[Node]:
    for node in tree.body:
        yield from (node.body + node.orelse) if isinstance(node, ast.If) else [node]


def reads(model: type, config: type) -> dict[str, set[str]]:
    """Field → the files in which it is read."""
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(cls.__module__.removeprefix("transformers."), cls.__name__) for cls in (model, config)]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            for field in _read_in(*here):
                found.setdefault(field, set()).add(here[0])
            todo += _next(*here)
    return {name: places for name, places in found.items() if is_field(config, name)}


@functools.cache
def _read_in(where: str, name: str) -> frozenset[str]:
    return frozenset(field for node in module(where).definitions.get(name, ()) for field in fields_read(node))


@functools.cache
def _next(where: str, name: str) -> list[tuple[str, str]]:
    """The definitions that a definition names, here and in the files that are followed."""
    here, found = module(where), []
    for other in {inner.id for node in here.definitions.get(name, ()) for inner in ast.walk(node) if isinstance(inner, ast.Name)}:
        if other in here.definitions:
            found.append((where, other))
        elif other in here.imports:
            source, original = here.imports[other]
            source = PACKAGES.get(source, source)
            if source in FOLLOWED or (source.startswith("models.") and "auto" not in source):
                found.append((source, original))
    return found


PACKAGES = {
    "generation": "generation.utils",
    "integrations.heterogeneity": "integrations.heterogeneity.configuration_utils",
}
"""Packages of `transformers` that hand on what one of their files defines."""


def fields_read(node: Node) -> Iterator[str]:
    """The fields that a piece of source reads."""
    own = isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "ConfigMixin"))
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Load) and _is_config(inner.value, own):
            yield inner.attr
        elif isinstance(inner, ast.Call) and len(inner.args) > 0:
            called, first = inner.func, inner.args[0]
            looked_up = isinstance(called, ast.Name) and called.id in ("getattr", "hasattr") and _is_config(first, own)
            key = inner.args[1] if looked_up and len(inner.args) > 1 else first if own and _pops(called) else None
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def _is_config(node: Node, own: bool) -> bool:
    if isinstance(node, ast.Name):
        return node.id in CONFIGS or (own and node.id == "self")
    if isinstance(node, ast.Attribute):
        return node.attr in CONFIGS
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get_text_config"


def _pops(called: Node) -> bool:
    """`kwargs.pop(…)` and its like: fields that a configuration class takes without declaring them."""
    return (
        isinstance(called, ast.Attribute)
        and called.attr in ("pop", "get", "setdefault")
        and isinstance(called.value, ast.Name)
        and called.value.id == "kwargs"
    )


def is_field(config: type, name: str) -> bool:
    """Whether a config file can set it: not a method, nor what belongs to the class or to the call that loads it."""
    there: Any = getattr(config, name, None)
    belongs = name.startswith("__") or name in OF_THE_CLASS or name in OF_A_CALL
    return not (callable(there) or belongs or (isinstance(there, property) and there.fset is None))


OF_THE_CLASS = {
    "base_model_fsdp_plan", "base_model_pp_plan", "base_model_tp_plan", "base_model_ep_plan", "attribute_map", "sub_configs",
    "sub_configs_defaults", "base_config_key", "default_theta", "default_rope_type", "ignore_keys_at_rope_validation",
    "_auto_class", "_rope_type_labels", "config_class", "_configuration_file",
}  # fmt: skip
OF_A_CALL = {
    "cache_dir", "force_download", "gguf_file", "local_files_only", "proxies", "repo_id", "return_unused_kwargs", "revision",
    "subfolder", "token", "trust_remote_code", "commit_message", "_from_auto", "_from_pipeline", "_commit_hash", "hf_quantizer",
}  # fmt: skip
