"""The dialect's `loading_from_pretrained`: names of published models, and their configurations."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cutaway import loading
from cutaway.config import HookedTransformerConfig
from cutaway.errors import ConfigError, UnknownModel, nearest
from cutaway.hooked_transformer import HookedTransformer
from cutaway.sources import hub
from cutaway.weights.canonical import fill_missing_keys

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "NON_HF_HOSTED_MODEL_NAMES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "Config",
    "convert_hf_model_config",
    "converted",
    "fill_missing_keys",
    "get_basic_config",
    "get_checkpoint_labels",
    "get_num_params_of_pretrained",
    "get_official_model_name",
    "get_pretrained_model_config",
    "get_pretrained_state_dict",
    "make_model_alias_map",
]

OFFICIAL_MODEL_NAMES = list(dict.fromkeys(hub.ALIASES.values()))
MODEL_ALIASES = {name: [short for short, full in hub.ALIASES.items() if full == name] for name in OFFICIAL_MODEL_NAMES}
DEFAULT_MODEL_ALIASES = [(names or [official])[0] for official, names in MODEL_ALIASES.items()]
PYTHIA_CHECKPOINTS = list(hub.PYTHIA_STEPS)
PYTHIA_V0_CHECKPOINTS = list(range(1000, 143001, 1000))
NON_HF_HOSTED_MODEL_NAMES = [f"llama-{size}b-hf" for size in (7, 13, 30, 65)]  # of weights that the reader has himself
STANFORD_CRFM_CHECKPOINTS = list(hub.STANFORD_STEPS)


def make_model_alias_map() -> dict[str, str]:
    """Every name in lower case, short or official → the official one."""
    return {name.lower(): official for official, names in MODEL_ALIASES.items() for name in (*names, official)}


def get_official_model_name(model_name: str) -> str:
    """The id on the hub behind a name.

    Raises:
        UnknownModel: it is none of the names that notebooks know; says near ones.
    """
    known = make_model_alias_map()
    if model_name.lower() not in known:
        raise UnknownModel(
            f"{model_name!r} is no short name and no official one{nearest(model_name.lower(), known)}; "
            f"OFFICIAL_MODEL_NAMES lists all {len(OFFICIAL_MODEL_NAMES)} (from_pretrained takes any id or folder)"
        )
    return known[model_name.lower()]


def get_checkpoint_labels(model_name: str, **kwargs: Any) -> tuple[list[int], str]:
    """The training steps at which a model was published, and the word for them.

    Raises:
        ConfigError: it was published once.
    """
    repo = hub.official(model_name)
    steps = hub.checkpoint_steps(repo)
    if not steps:
        raise ConfigError(f"{repo} was published without checkpoints of its training")
    return list(steps), "step"


def get_pretrained_model_config(
    model_name: str,
    hf_cfg: dict[str, Any] | None = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    fold_ln: bool = False,
    device: str | torch.device | None = None,
    n_devices: int = 1,
    default_prepend_bos: bool | None = None,
    dtype: torch.dtype = torch.float32,
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    **kwargs: Any,
) -> HookedTransformerConfig:
    """The configuration of a published model; files that are not in the cache are fetched."""
    if hf_cfg is not None:
        raise ConfigError("hf_cfg is not taken; give a folder with a config.json, or a live model to from_pretrained(hf_model=…)")
    revision = None
    if checkpoint_index is not None or checkpoint_value is not None:
        revision = hub.checkpoint_revision(hub.official(model_name), index=checkpoint_index, value=checkpoint_value)[0]
    source = loading.find(model_name, access=hub.Access(revision))
    n_ctx = hub.usual_length(model_name) if n_ctx is None else n_ctx
    cfg = copy.copy(loading.understand(source, n_ctx=n_ctx, first_n_layers=first_n_layers).config)
    if fold_ln and cfg.normalization_type in ("LN", "RMS"):
        cfg.normalization_type += "Pre"
    if default_prepend_bos is not None:
        cfg.default_prepend_bos = default_prepend_bos
    cfg.device = device if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cfg.n_devices, cfg.dtype = n_devices, dtype
    return cfg


def convert_hf_model_config(model_name: str, **kwargs: Any) -> dict[str, Any]:
    """The configuration of a published model, as a dictionary of its fields."""
    return get_pretrained_model_config(model_name, **kwargs).to_dict()


@dataclass
class Config:
    """The sizes of a model, as the course that builds GPT-2 by hand names them."""

    d_model: int = 768
    debug: bool = True
    layer_norm_eps: float = 1e-5
    d_vocab: int = 50257
    init_range: float = 0.02
    n_ctx: int = 1024
    d_head: int = 64
    d_mlp: int = 3072
    n_heads: int = 12
    n_layers: int = 12


def get_basic_config(model_name: str, **kwargs: Any) -> Config:
    """The sizes of a published model; fields that our configuration has no name for keep their defaults, as in the dialect."""
    found = get_pretrained_model_config(model_name, **kwargs).to_dict()
    return Config(**{field.name: found[field.name] for field in fields(Config) if field.name in found})


def get_num_params_of_pretrained(model_name: str) -> int:
    """How many parameters a published model has, as the dialect counts them: without embeddings, biases and norms."""
    count = get_pretrained_model_config(model_name).n_params
    assert count is not None  # (a configuration counts them when it is made)
    return count


def get_pretrained_state_dict(
    official_model_name: str,
    cfg: HookedTransformerConfig,
    hf_model: Any = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """A published model's weights in the dialect's names, before any rewriting; files that are not in the cache are fetched."""
    where = {"checkpoint_value": cfg.checkpoint_value} if cfg.from_checkpoint else {}
    options: dict[str, Any] = {"hf_model": hf_model, "dtype": dtype, "device": "cpu"} | where | kwargs
    model = HookedTransformer.from_pretrained_no_processing(official_model_name, **options)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def converted(model: Any, cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """The weights of a live `transformers` model in the dialect's names: every `convert_…_weights`, as a model says its family.

    Raises:
        UnsupportedArchitecture: no table knows the family, or a field of its configuration.
    """
    return get_pretrained_state_dict("", cfg, model, dtype=cfg.torch_dtype)
