"""Text: tokens with colours, what was predicted for each, what neurons and directions react to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import numpy as np

from cutaway.errors import ShapeError
from cutaway.numbers_given import options
from cutaway.view.arrays import Array, Labels, Values, as_array, as_labels, color_range, number, top_cells
from cutaway.view.figure import Figure

MOST_TOKENS = 20_000  # in one figure of text


def colored_tokens(
    tokens: Labels,
    values: Values,
    names: Labels | None = None,
    *,
    title: str = "",
    value_name: str = "value",
    scale: str = "diverging",
    range: Values | None = None,
) -> Figure:
    """A text whose tokens are coloured by a value; with several values, one is chosen at a time.

    Args:
        values: [pos], or [kind, pos] with `names` for the kinds.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(values, "values", ndim=(1, 2))
    array = array[None] if array.ndim == 1 else array
    known = as_labels(names, len(array), "names", "kinds of value", default=value_name + " " if len(array) > 1 else "")
    text = as_labels(tokens, array.shape[1], "tokens", "positions") or []
    menus = [{"name": "value", "options": known}] if len(array) > 1 else []
    return _texts([text], [array], menus, title, value_name, scale, range)


def text_neuron_activations(
    tokens: Labels,
    activations: Values,
    *,
    layer_names: Labels | None = None,
    neuron_names: Labels | None = None,
    first_name: str = "layer",
    second_name: str = "neuron",
    title: str = "Neuron activations",
    scale: str = "diverging",
) -> Figure:
    """Texts coloured by one neuron's activation, with a menu for layer and neuron.

    Args:
        tokens: one text (a list of strings) or several (a list of lists).
        activations: [pos, layer, neuron] for one text, or a list of those.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    texts, arrays = _several(tokens, activations, "activations", 3)
    layers, neurons = arrays[0].shape[1:]
    menus = [
        {"name": first_name, "options": as_labels(layer_names, layers, "layer_names", f"{first_name}s", default="")},
        {"name": second_name, "options": as_labels(neuron_names, neurons, "neuron_names", f"{second_name}s", default="")},
    ]
    flat = [array.reshape(len(array), -1).T for array in arrays]
    return _texts(texts, flat, menus, title, "activation", scale, None)


@options(k=1)
def top_samples(
    samples: Iterable[Labels],
    activations: Iterable[Values],
    *,
    names: Labels | None = None,
    menu_name: str = "neuron",
    k: int = 10,
    title: str = "Texts that activate most",
    scale: str = "diverging",
) -> Figure:
    """For each neuron or direction, the `k` texts with the highest activation, coloured.

    Args:
        samples: texts, each a list of tokens.
        activations: for each text [pos], or [neuron, pos].

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    texts, arrays = _several(samples, activations, "activations", (1, 2), last=True)
    arrays = [array[None] if array.ndim == 1 else array for array in arrays]
    count = len(arrays[0])
    options = as_labels(names, count, "names", f"{menu_name}s", default="")
    best = np.stack([np.where(np.isnan(array), -np.inf, array).max(1) for array in arrays])  # text, neuron
    order = np.argsort(-best, axis=0, kind="stable")[:k].T  # neuron, rank
    used, place = _used(order)
    menus = [{"name": menu_name, "options": options}] if count > 1 else []
    figure = _texts([texts[i] for i in used], [arrays[i] for i in used], menus, title, "activation", scale, None)
    meta = dict(figure.meta) | {"order": place.tolist()}
    return Figure("tokens", title, figure.arrays, (), meta, figure.text, 150 + 60 * min(k, len(used)))


@options(k=1)
def topk_tokens(
    tokens: Labels,
    activations: Values,
    *,
    k: int = 10,
    layer_names: Labels | None = None,
    neuron_names: Labels | None = None,
    first_name: str = "layer",
    second_name: str = "neuron",
    title: str = "Tokens that activate most",
) -> Figure:
    """For each neuron the `k` tokens with the highest activations, and the `k` with the lowest.

    Args:
        tokens: one text (a list of strings) or several (a list of lists).
        activations: [pos, layer, neuron] for one text, or a list of those.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    texts, arrays = _several(tokens, activations, "activations", 3)
    layers, neurons = arrays[0].shape[1:]
    flat = np.concatenate([array.reshape(len(array), -1) for array in arrays]).T  # layer × neuron, token
    words = [token for text in texts for token in text]
    k = min(k, len(words))
    highest = np.argsort(np.where(np.isnan(flat), np.inf, -flat), axis=1, kind="stable")[:, :k]
    lowest = np.argsort(np.where(np.isnan(flat), np.inf, flat), axis=1, kind="stable")[:, :k]
    used, place = _used(np.stack([highest, lowest]))
    value = np.stack([np.take_along_axis(flat, highest, 1), np.take_along_axis(flat, lowest, 1)])
    meta = {
        "layers": as_labels(layer_names, layers, "layer_names", f"{first_name}s", default=""),
        "neurons": as_labels(neuron_names, neurons, "neuron_names", f"{second_name}s", default=""),
        "firstName": first_name,
        "secondName": second_name,
        "words": [words[i] for i in used],
        "index": place.reshape(-1).tolist(),
    }
    first = ", ".join(f"{words[i]!r} {number(float(flat[0, i]))}" for i in highest[0][:5])
    text = f"{layers} {first_name}s × {neurons} {second_name}s over {len(words)} tokens; the first one's top tokens: {first}"
    return Figure("topk", title, {"value": value}, (), meta, text, 200 + 28 * k)


@options(k=1)
def token_log_probs(
    tokens: Labels,
    log_probs: Values,
    vocabulary: Labels | Mapping[int, Any],
    token_ids: Values,
    *,
    k: int = 10,
    title: str = "Log-probability of each token",
) -> Figure:
    """A text coloured by how well each token was predicted, with the `k` tokens that the model expected there.

    Args:
        tokens: the text, [pos] strings.
        log_probs: [pos, d_vocab]; row *i* predicts token *i + 1*. The row after the last token may be missing.
        vocabulary: the string of each token id (a list, or a mapping that knows at least those needed).
        token_ids: the ids of `tokens`.

    Raises:
        ShapeError: shapes and labels do not fit.
    """
    array = as_array(log_probs, "log_probs", ndim=2)
    ids = as_array(token_ids, "token_ids", ndim=1).astype(np.int64)
    text = as_labels(tokens, len(ids), "tokens", "token ids") or []
    if len(array) not in (len(ids), len(ids) - 1):
        raise ShapeError(f"log_probs has {len(array)} rows, but there are {len(ids)} tokens; row i predicts token i + 1")
    if ids.max() >= array.shape[1] or ids.min() < 0:
        raise ShapeError(f"token ids go from {ids.min()} to {ids.max()}, but log_probs has {array.shape[1]} columns")
    rows = array[: len(ids) - 1]
    k = min(k, array.shape[1])
    top = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    own = np.take_along_axis(rows, ids[1:, None], 1)[:, 0]
    rank = (rows > own[:, None]).sum(1)
    nan = np.full(1, np.nan, np.float32)
    used, place = _used(top)
    known = vocabulary if isinstance(vocabulary, Mapping) else list(vocabulary)
    meta = {
        "k": k,
        "words": [str(known[i]) for i in used],
        "top": place.tolist(),
        "vocabulary": array.shape[1],
    }
    arrays = {
        "own": np.concatenate([nan, own]),
        "rank": np.concatenate([nan, rank.astype(np.float32)]),
        "top": np.take_along_axis(rows, top, 1) if len(rows) else np.zeros((0, k), np.float32),
    }
    lines = (
        [f"mean log-probability {number(float(own.mean()))} over {len(own)} tokens"]
        if len(own)
        else ["one token: nothing to predict"]
    )
    lines += [f"{text[i + 1]!r} ({i + 1}): {number(float(own[i]))}, rank {rank[i]}" for i in np.argsort(own)[:3]]
    return Figure("logprobs", title, arrays, tuple(text), meta, "\n".join(lines), 340 + 26 * k)


def _used(index: Array) -> tuple[list[int], Array]:
    """Which numbers an array holds, and for each entry its place among them."""
    used, place = np.unique(index, return_inverse=True)
    return used.tolist(), place.reshape(index.shape)


def _several(
    tokens: Labels, values: Any, name: str, ndim: int | tuple[int, ...], *, last: bool = False
) -> tuple[list[list[str]], list[Array]]:
    """One text or several, each with its array, whose first (or `last`) axis is the text's length."""
    tokens = tokens if isinstance(tokens, str) else list(tokens)
    if isinstance(tokens, str) or not tokens:
        raise ShapeError(f"tokens must be a list of strings, or a list of such lists; this is {str(tokens)[:40]!r}")
    if isinstance(tokens[0], str):
        tokens, values = [tokens], [values]
    values = list(values)
    if len(tokens) != len(values):
        raise ShapeError(f"there are {len(tokens)} texts, but {len(values)} arrays of {name}")
    arrays = [as_array(value, f"{name} of text {index}", ndim=ndim) for index, value in enumerate(values)]
    axis = -1 if last else 0
    texts = [
        as_labels(t, a.shape[axis], f"text {i}", "positions") or [] for i, (t, a) in enumerate(zip(tokens, arrays, strict=True))
    ]
    others = {array.shape[:-1] if last else array.shape[1:] for array in arrays}
    if len(others) > 1:
        raise ShapeError(f"{name} differ beside their length: {', '.join(str(list(shape)) for shape in sorted(others))}")
    return texts, arrays


def _texts(
    texts: list[list[str]],
    arrays: list[Array],
    menus: list[dict[str, Any]],
    title: str,
    value_name: str,
    scale: str,
    given: Values | None,
) -> Figure:
    count = sum(map(len, texts))
    if count > MOST_TOKENS:
        raise ShapeError(f"{count} tokens are more than can be read; draw at most {MOST_TOKENS}, for example a window")
    meta = {
        "texts": texts, "menus": menus, "valueName": value_name, "scale": scale, "range": color_range(arrays, scale, given),
        "rangeGiven": given is not None,
    }  # fmt: skip
    lines = [f"{len(texts)} texts, {count} tokens" if len(texts) > 1 else f"{count} tokens"]
    menus_said = [[f"{menu['name']} {option}" for option in menu["options"]] for menu in menus]
    kinds = [", ".join(words) for words in product(*menus_said)]
    for kind, position in top_cells(arrays[0], 5):
        where = f" at {kinds[kind]}" if menus else ""
        lines.append(f"{texts[0][position]!r} ({position}){where}: {number(float(arrays[0][kind, position]))}")
    named = {f"v{index}": array for index, array in enumerate(arrays)}
    return Figure("tokens", title, named, (), meta, "\n".join(lines), 150 + 26 * (count // 14 + len(texts)))
