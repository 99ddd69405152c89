"""A config as `transformers` understands it: its own configuration class fills in, renames and rewrites the fields.

Published configs say one thing under several names (`rope_scaling` and `rope_parameters`, `rotary_pct` and
`partial_rotary_factor`) and carry values that the class replaces (Gemma's "gelu"). Only the class knows which counts.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cutaway.errors import UnsupportedArchitecture

REFUSALS = (ValueError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError)
"""What configuration classes raise on values that they do not accept, besides `StrictDataclassError`."""


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the installed `transformers` makes of a config: of its language model, where there are several inside.

    A config whose `model_type` it does not know is returned as it is.

    Raises:
        UnsupportedArchitecture: `transformers` itself refuses the config; says its reason.
    """
    from huggingface_hub.errors import StrictDataclassError

    kind = configuration_class(config)
    if kind is None:
        return text_config(config)
    try:
        with _quiet():  # (it warns of deprecated names, on which nothing depends)
            whole = kind.from_dict(copy.deepcopy(dict(config)))  # (it changes nested tables)
            inner = whole.get_text_config(decoder=True)
            return inner.to_dict() | {"tie_word_embeddings": getattr(whole, "tie_word_embeddings", False)}
    except (StrictDataclassError, *REFUSALS) as error:
        raise UnsupportedArchitecture(
            f"transformers refuses this config of model_type={config.get('model_type')!r}: {_reason(error)}; mend config.json"
        ) from error


def configuration_class(config: Mapping[str, Any]) -> Any:
    """The configuration class of `transformers` that reads a config, or None where it has none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    named = str(config.get("model_type"))
    if named == "mistral" and "layer_types" in config and "ministral" in CONFIG_MAPPING:
        named = "ministral"  # as AutoConfig does
    return CONFIG_MAPPING[named] if named in CONFIG_MAPPING else None  # noqa: SIM401 (a lazy mapping, whose get finds nothing)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model, where a model of several kinds of input has several."""
    inner = config.get("text_config")
    return dict(inner) if isinstance(inner, Mapping) else dict(config)


def _reason(error: BaseException) -> str:
    """The last line says why; the ones before it say where."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # (else in quotes)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300].rstrip(" .,;:!?") if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the classes say about deprecated names off stderr."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
