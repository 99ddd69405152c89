"""How much each head attends as a pattern says: previous tokens, duplicates, induction, or a pattern of one's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cutaway.errors import ShapeError, UnknownName, UnknownPattern

__all__ = [
    "DET_PAT_NOT_SQUARE_ERR",
    "HEAD_NAMES",
    "INVALID_HEAD_NAME_ERR",
    "SEQ_LEN_ERR",
    "ErrorMeasure",
    "HeadName",
    "LayerHeadTuple",
    "LayerToHead",
    "compute_head_attention_similarity_score",
    "detect_head",
    "get_duplicate_token_head_detection_pattern",
    "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern",
    "get_supported_heads",
]

logger = logging.getLogger(__name__)
Square = Float[Tensor, "dest src"]
LayerHeadTuple = tuple[int, int]
LayerToHead = dict[int, list[int]]
HEAD_NAMES = ("previous_token_head", "duplicate_token_head", "induction_head")
# The dialect's words, which callers compare.
SEQ_LEN_ERR = "The sequence must be non-empty and must fit within the model's context window."
INVALID_HEAD_NAME_ERR = f"detection_pattern must be a Tensor or one of head names: {HEAD_NAMES}; got %s"
DET_PAT_NOT_SQUARE_ERR = (
    "The detection pattern must be a lower triangular matrix of shape (sequence_length, sequence_length); "
    "sequence_length=%d; got detection patern of shape %s"
)
ERROR_MEASURES = ("abs", "mul")
ErrorMeasure = Literal["abs", "mul"]
HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]


def detect_head(
    model: Any,
    seq: str | Sequence[str],
    detection_pattern: Tensor | str,
    heads: Sequence[tuple[int, int]] | Mapping[int, Sequence[int]] | None = None,
    cache: Any = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> Float[Tensor, "layer head"]:
    """The score of each head on a text, or its mean over several texts; -1 for heads that were not asked for.

    Args:
        detection_pattern: `[dest, src]`, lower triangular, or one of `HEAD_NAMES`.
        heads: pairs (layer, head), or layer → heads; all where None.
        cache: of a run on this text, without its batch axis; the text is run where None.
        exclude_bos, exclude_current_token: leave out attention to the first position, or to the same one.
        error_measure: "mul" is the share of attention where the pattern is 1; "abs" is 1 less the mean absolute
            difference per query, rounded to three digits.

    Raises:
        UnknownPattern, UnknownName: no such pattern or measure.
        ShapeError: the text is too short or too long, or the pattern does not fit it.
    """
    if error_measure not in ERROR_MEASURES:
        raise UnknownName(f"no error_measure {error_measure!r}; there are {', '.join(ERROR_MEASURES)}")
    if isinstance(detection_pattern, str) and detection_pattern not in HEAD_NAMES:
        raise UnknownPattern(INVALID_HEAD_NAME_ERR % detection_pattern)
    options: dict[str, Any] = {
        "exclude_bos": exclude_bos,
        "exclude_current_token": exclude_current_token,
        "error_measure": error_measure,
    }
    if not isinstance(seq, str):
        if cache is not None:
            raise ShapeError("a cache is of one text; give one text, or leave the cache out")
        return torch.stack([detect_head(model, one, detection_pattern, heads, **options) for one in seq]).mean(0)
    tokens = model.to_tokens(seq)
    if not 1 < tokens.shape[-1] < model.cfg.n_ctx:  # (one of n_ctx tokens may have been cut to that)
        raise ShapeError(SEQ_LEN_ERR)
    pattern = _PATTERNS[detection_pattern](tokens.cpu()) if isinstance(detection_pattern, str) else detection_pattern
    _check(pattern, tokens.shape[-1], error_measure)
    if cache is None:
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True, names_filter=lambda name: name.endswith("hook_pattern"))
    scores = -torch.ones(model.cfg.n_layers, model.cfg.n_heads, dtype=model.cfg.dtype)
    for layer, head in _heads_of(model, heads):
        scores[layer, head] = compute_head_attention_similarity_score(cache["pattern", layer][head], pattern, **options)
    return scores


def _heads_of(model: Any, heads: Any) -> list[tuple[int, int]]:
    """Pairs of layer and head."""
    if heads is None:
        return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    if isinstance(heads, Mapping):
        return [(layer, head) for layer, some in heads.items() for head in some]
    return [(layer, head) for layer, head in heads]


def _check(pattern: Square, length: int, error_measure: str) -> None:
    if pattern.shape != (length, length) or not torch.equal(pattern, pattern.tril()):
        raise ShapeError(DET_PAT_NOT_SQUARE_ERR % (length, pattern.shape))
    if error_measure == "mul" and not set(pattern.unique().tolist()) <= {0, 1}:
        logger.warning("with error_measure='mul' the pattern should consist of zeros and ones")


def get_supported_heads() -> None:
    """Print the names of the patterns that are known."""
    print(f"Supported heads: {HEAD_NAMES}")


def get_previous_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """1 where the key is right before the query."""
    return torch.diag(torch.ones(tokens.shape[-1] - 1), -1)


def get_duplicate_token_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """1 where the key is an earlier occurrence of the query's token."""
    row = tokens.reshape(-1)
    return (row[:, None] == row).float().tril(-1)


def get_induction_head_detection_pattern(tokens: Int[Tensor, "1 pos"]) -> Square:
    """1 where the key comes right after an earlier occurrence of the query's token."""
    duplicates = get_duplicate_token_head_detection_pattern(tokens)
    return torch.cat([torch.zeros(len(duplicates), 1), duplicates[:, :-1]], dim=1).tril()


_PATTERNS = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def compute_head_attention_similarity_score(
    attention_pattern: Square,
    detection_pattern: Square,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: str,
) -> float:
    """How alike two patterns are; see `detect_head`. Neither is changed."""
    if attention_pattern.ndim != 2 or attention_pattern.shape[0] != attention_pattern.shape[1]:
        raise ShapeError(f"an attention pattern is [dest, src], not {tuple(attention_pattern.shape)}")
    counted = torch.ones_like(attention_pattern)
    if exclude_bos:
        counted[:, 0] = 0
    if exclude_current_token:
        counted.fill_diagonal_(0)
    wanted = detection_pattern.to(attention_pattern)
    if error_measure == "mul":
        seen = attention_pattern * counted
        return float((seen * wanted).sum() / seen.sum())
    apart = (attention_pattern - wanted).abs() * counted
    return 1 - round(float(apart.mean() * len(apart)), 3)
