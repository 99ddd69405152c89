"""What ARENA's fork of CircuitsVis adds: attention straight from a cache, for several texts, weighted by what is moved."""

from __future__ import annotations

import re
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cutaway.compat.rendered import Rendered, RenderedPage
from cutaway.compat.visuals import attention_heads, under_headings
from cutaway.errors import ShapeError, UnknownName, nearest
from cutaway.model.foreign import part_with
from cutaway.view.html import display

ATTENTION_TYPES = ("standard", "value-weighted", "info-weighted")
MODES = ("large", "small", "lines")
RETURN_MODES = ("html", "browser", "view")
MARKUP = re.compile(r"</?(?:b|i|u|em|strong|span|font|code|sup|sub|br)(?:\s[^<>]*)?/?>", re.IGNORECASE)


def from_cache(
    cache: Any,
    tokens: Sequence[Any],
    heads: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
    layers: int | Sequence[int] | None = None,
    batch_idx: int | Sequence[int] | None = None,
    attention_type: str = "standard",
    mode: str = "small",
    radioitems: bool = False,
    batch_labels: Sequence[str] | Callable[..., str] | None = None,
    return_mode: str = "html",
    help: bool = False,
    title: str | None = None,
    display_mode: str = "dark",
    head_notation: str = "dot",
) -> Rendered | RenderedPage | None:
    """The attention of heads that a cache holds, over one text or several.

    Args:
        tokens: the text as strings, or for a batch a list of texts (shorter ones draw only their own tokens).
        heads: pairs (layer, head); or give `layers`; all heads where both are None.
        batch_idx: which texts of a batch; all where None.
        attention_type: "value-weighted" multiplies each probability by the length of the value vector it moves, over
            the longest one; "info-weighted" does so after `W_O`.
        mode, radioitems, help, display_mode: how the fork lays it out; there is one layout here.
        batch_labels: headings of the texts, or a function that makes one of a text's tokens.
        return_mode: "html" returns it, "view" shows it in the notebook, "browser" writes a file and opens it.
        head_notation: "dot" (0.1) or "LH" (L0H1).

    Raises:
        ShapeError, UnknownName, MissingActivation: arguments do not fit each other or the cache.
    """
    _one_of("attention_type", attention_type, ATTENTION_TYPES)
    _one_of("mode", mode, MODES)
    _one_of("head_notation", head_notation, ("dot", "LH"))
    pairs = _heads(cache.model.cfg, heads, layers)
    names = [f"{layer}.{head}" if head_notation == "dot" else f"L{layer}H{head}" for layer, head in pairs]
    batched = cache.has_batch_dim
    patterns = torch.stack([cache["pattern", layer].select(-3, head) for layer, head in pairs], dim=-3)
    if attention_type != "standard":
        v = torch.stack([_values(cache, layer, head) for layer, head in pairs], dim=-3)
        patterns = get_weighted_attention(patterns, cache.model, attention_type, pairs, v)
    if batched and len(patterns) == 1 and _is_one_text(tokens):
        patterns, batched = patterns[0], False
    if not batched:
        if not _is_one_text(tokens):
            if len(tokens) != 1:
                raise ShapeError(f"the cache is of one text, and tokens are {len(tokens)} texts")
            tokens = tokens[0]
        if batch_idx is not None:
            raise ShapeError("batch_idx chooses from a batch, and this cache is of one text")
        return _rendered([patterns], [tokens], names, None, title, return_mode)
    if _is_one_text(tokens):
        raise ShapeError(f"the cache is of {len(patterns)} texts, so tokens must be a list of texts, each a list of strings")
    chosen = list(range(len(tokens))) if batch_idx is None else [batch_idx] if isinstance(batch_idx, int) else list(batch_idx)
    texts = [tokens[index] for index in chosen]
    some = [patterns[index] for index in chosen]
    return _rendered(some, texts, names, _labels(batch_labels, texts, chosen), title, return_mode)


def from_values(
    attention: Any,
    tokens: Sequence[Any],
    mode: str = "small",
    radioitems: bool = False,
    attention_head_names: Sequence[str] | None = None,
    return_mode: str = "html",
    title: str | None = None,
    batch_labels: Sequence[str] | Callable[..., str] | None = None,
) -> Rendered | RenderedPage | None:
    """Attention given as numbers: `[dest, src]` or `[head, dest, src]` of a text, with a batch axis in front of several.

    Other arguments as in `from_cache`.

    Raises:
        ShapeError: attention and tokens do not fit.
    """
    _one_of("mode", mode, MODES)
    values = attention if isinstance(attention, Tensor) else torch.as_tensor(attention)
    texts = [list(tokens)] if _is_one_text(tokens) else [list(one) for one in tokens]
    if _is_one_text(tokens) or (len(texts) == 1 and values.ndim < 4 and len(values) != 1):
        values = values[None] if values.ndim < 4 else values
    values = values.unsqueeze(1) if values.ndim == 3 else values
    if values.ndim != 4 or len(values) != len(texts):
        raise ShapeError(
            f"attention of shape {tuple(torch.as_tensor(attention).shape)} does not fit {len(texts)} texts; give [dest, src] or "
            "[head, dest, src] for one text, and the same with a batch axis in front for a list of texts"
        )
    names = (
        [f"Head {head + 1}" for head in range(values.shape[1])] if attention_head_names is None else list(attention_head_names)
    )
    if len(names) != values.shape[1]:
        raise ShapeError(f"attention_head_names has {len(names)} names, and attention has {values.shape[1]} heads")
    return _rendered(list(values), texts, names, _labels(batch_labels, texts, range(len(texts))), title, return_mode)


def get_weighted_attention(
    pattern: Float[Tensor, "*batch head dest src"],
    model: Any,
    attention_type: str,
    layers_and_heads: int | Sequence[tuple[int, int]] | None = None,
    v: Float[Tensor, "*batch head src d_head"] | None = None,
) -> Float[Tensor, "*batch head dest src"]:
    """Attention times the length of what is moved from each source, relative to the longest of its head.

    Args:
        layers_and_heads: one layer, all heads of which are meant, or a pair for each head; for `W_O`.
        v: the value vectors.
    """
    _one_of("attention_type", attention_type, ATTENTION_TYPES)
    if attention_type == "standard":
        return pattern
    if v is None:
        raise ShapeError(f"attention_type={attention_type!r} needs the value vectors v, [head, src, d_head]")
    if attention_type == "info-weighted":
        if isinstance(layers_and_heads, int):
            layers_and_heads = [(layers_and_heads, head) for head in range(model.cfg.n_heads)]
        if layers_and_heads is None:
            raise ShapeError("attention_type='info-weighted' needs layers_and_heads, to know which W_O is meant")
        v = v @ torch.stack([part_with(model, layer, "attn", "W_O").W_O[head] for layer, head in layers_and_heads])
    length = v.norm(dim=-1)
    return pattern * (length / length.amax(-1, keepdim=True)).unsqueeze(-2)


# Parts of the above.


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UnknownName(f"{name}={value!r} is not known{nearest(str(value), known)}; there are {', '.join(known)}")


def _is_one_text(tokens: Sequence[Any]) -> bool:
    if isinstance(tokens, str) or not len(tokens):
        raise ShapeError("tokens are a list of strings, or a list of such lists; model.to_str_tokens makes one")
    return isinstance(tokens[0], str)


def _heads(cfg: Any, heads: Any, layers: Any) -> list[tuple[int, int]]:
    """The pairs that are meant; negative layers count from the end."""
    if heads is not None and layers is not None:
        raise ShapeError("give heads or layers, not both")
    if heads is None:
        some = range(cfg.n_layers) if layers is None else [layers] if isinstance(layers, int) else layers
        heads = [(layer, head) for layer in some for head in range(cfg.n_heads)]
    elif isinstance(heads, tuple) and len(heads) == 2 and isinstance(heads[0], int):
        heads = [heads]
    for layer, head in heads:
        if not (-cfg.n_layers <= layer < cfg.n_layers and 0 <= head < cfg.n_heads):
            raise ShapeError(f"there is no head {layer}.{head}: {cfg.n_layers} layers of {cfg.n_heads} heads")
    return [(layer % cfg.n_layers, head) for layer, head in heads]


def _values(cache: Any, layer: int, head: int) -> Tensor:
    """The value vectors of a head, which it may share with others."""
    v = cache["v", layer]
    return v.select(-2, head * v.shape[-2] // cache.model.cfg.n_heads)


def _labels(labels: Any, texts: Sequence[Sequence[str]], chosen: Sequence[int]) -> list[str]:
    if labels is None:
        return ["".join(text) for text in texts]
    if callable(labels):
        try:
            return [labels(text) for text in texts]
        except TypeError:  # the fork's text says that such a function is also given the index, its code does not
            return [labels(index, text) for index, text in zip(chosen, texts, strict=True)]
    return [str(labels[index]) for index in chosen] if len(labels) > len(texts) else [str(one) for one in labels]


def _rendered(
    patterns: Sequence[Tensor],
    texts: Sequence[Sequence[str]],
    names: list[str],
    labels: list[str] | None,
    title: str | None,
    return_mode: str,
) -> Rendered | RenderedPage | None:
    _one_of("return_mode", return_mode, RETURN_MODES)
    figures = []
    for pattern, text in zip(patterns, texts, strict=True):
        words = [plain(word) for word in text]
        figure = attention_heads(pattern[..., : len(words), : len(words)], words, names)
        figures.append(Rendered.of(figure.with_title(title)) if title and len(texts) == 1 else figure)
    headings = [plain(label) for label in labels or [""] * len(figures)]
    result = under_headings(title or "Attention patterns", figures, headings)
    if return_mode == "html":
        return result
    if return_mode == "view":
        display(result)
        return None
    number = 0
    while (path := Path.cwd() / f"attention_{number}.html").exists():
        number += 1
    result.save(path)
    webbrowser.open(path.as_uri())
    return None


def plain(text: str) -> str:
    """Text without the tags for bold, colour and the like that the fork's callers put into tokens."""
    return MARKUP.sub("", text)
