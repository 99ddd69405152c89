"""CircuitsVis' functions, drawn by `cutaway.view`. The signatures are CircuitsVis', and where it differs ARENA's fork's.

Tokens and attention are accepted in either order, as the two disagree. Colours that a caller names are not taken over:
our scales can be told apart by everybody and fit dark pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cutaway import view
from cutaway.compat.rendered import Rendered, RenderedPage
from cutaway.errors import ShapeError, UnknownName, nearest
from cutaway.view.arrays import as_array

__all__ = [
    "attention_heads",
    "attention_pattern",
    "attention_patterns",
    "colored_tokens",
    "colored_tokens_multi",
    "hello",
    "text_neuron_activations",
    "token_log_probs",
    "topk_samples",
    "topk_tokens",
    "visualize_model_performance",
]

# Attention.


def attention_patterns(
    tokens: Any, attention: Any, attention_head_names: Sequence[str] | None = None, **colours: Any
) -> Rendered:
    """The attention `[head, dest, src]` of a group of heads over a text.

    Args:
        attention_head_names: one for each head; of more only the first are used.
        colours: as `attention_heads` takes them.
    """
    return attention_heads(attention, tokens, attention_head_names, **colours)


def attention_heads(
    attention: Any,
    tokens: Any,
    attention_head_names: Sequence[str] | None = None,
    max_value: float | int | None = None,
    min_value: float | int | None = None,
    negative_color: str | None = None,
    positive_color: str | None = None,
    mask_upper_tri: bool | None = None,
) -> Rendered:
    """The attention `[head, dest, src]`, or any other numbers for pairs of tokens, of a group of heads over a text.

    Args:
        max_value, min_value: the ends of the colour scale.
        mask_upper_tri: leave out what is above the diagonal; by default what is given is shown.

    Raises:
        ShapeError: shapes and tokens do not fit.
    """
    attention, tokens = _in_order(attention, tokens)
    values = as_array(attention, "attention", ndim=(2, 3, 4))
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 4:
        raise ShapeError(f"attention has a batch of {len(values)} texts; choose one, attention[i]")
    if mask_upper_tri:
        values = np.tril(values)
    diverging = bool(np.nanmin(values) < 0) or (min_value is not None and min_value < 0)
    return Rendered.of(
        view.attention_patterns(
            tokens,
            values,
            _head_names(attention_head_names, len(values)),
            scale="diverging" if diverging else "sequential",
            range=_range(values, min_value, max_value, diverging),
        )
    )


def attention_pattern(
    tokens: Any,
    attention: Any,
    max_value: float | int | None = None,
    min_value: float | int | None = None,
    negative_color: str | None = None,
    show_axis_labels: bool | None = None,
    positive_color: str | None = None,
    mask_upper_tri: bool | None = None,
) -> Rendered:
    """The attention `[dest, src]` of one head over a text. Arguments as in `attention_heads`."""
    attention, tokens = _in_order(attention, tokens)
    values = as_array(attention, "attention", ndim=(2, 3))
    if values.ndim == 3 and len(values) != 1:
        raise ShapeError(f"attention_pattern draws one head, and attention has {len(values)}; use attention_heads")
    return attention_heads(values, tokens, None, max_value, min_value, mask_upper_tri=mask_upper_tri)


def _in_order(attention: Any, tokens: Any) -> tuple[Any, Any]:
    """Attention, then tokens, whichever way round they came."""
    return (tokens, attention) if _is_text(attention) and not _is_text(tokens) else (attention, tokens)


def _is_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(one, str) for one in value)


def _head_names(names: Sequence[str] | None, count: int) -> list[str]:
    given = [] if names is None else [str(name) for name in names][:count]
    return given + [f"Head {head}" for head in range(len(given), count)]


def _range(values: Any, low: float | int | None, high: float | int | None, diverging: bool) -> list[float] | None:
    """The ends of the colour scale that a caller has set, with the data's own where one was left open."""
    if low is None and high is None:
        return None
    own = (float(np.nanmin(values)), float(np.nanmax(values)))
    low = min(own[0], 0.0) if low is None else float(low)
    high = max(own[1], 0.0) if high is None else float(high)
    if diverging:  # the middle of the scale is zero
        high = max(abs(low), abs(high))
        low = -high
    return [low, high] if low < high else None


# Coloured tokens.


def colored_tokens(
    tokens: Sequence[str],
    values: Any,
    min_value: float | int | None = None,
    max_value: float | int | None = None,
    negative_color: str | None = None,
    positive_color: str | None = None,
) -> Rendered:
    """A text whose tokens are coloured by one value each, `[pos]`."""
    array = as_array(values, "values", ndim=1)
    return Rendered.of(view.colored_tokens(tokens, array, range=_range(array, min_value, max_value, diverging=True)))


def colored_tokens_multi(tokens: Sequence[str], values: Any, labels: Sequence[str] | None = None) -> Rendered:
    """A text whose tokens are coloured by one of several values, `[pos, kind]`."""
    array = as_array(values, "values", ndim=2)
    if len(array) != len(tokens):
        raise ShapeError(f"there are {len(tokens)} tokens, and values has {len(array)} rows; it is [pos, kind]")
    return Rendered.of(view.colored_tokens(tokens, array.T, labels or None))


def visualize_model_performance(tokens: Any, str_tokens: Sequence[str], logits: Any) -> Rendered:
    """How well each token of a text was predicted: by logit, log-probability or probability.

    Args:
        tokens: their ids, `[pos]` or `[1, pos]`.
        logits: `[pos, d_vocab]` or `[1, pos, d_vocab]`; row i predicts token i + 1.
    """
    ids, scores = _one_text(tokens, 1, "tokens").long(), _one_text(logits, 2, "logits").float()
    if not len(ids) == len(str_tokens) == len(scores):
        raise ShapeError(f"there are {len(ids)} tokens, {len(str_tokens)} strings and {len(scores)} rows of logits")
    rows, right = scores[:-1], ids[1:, None].to(scores.device)
    values = torch.cat([kind.gather(-1, right) for kind in (rows, rows.log_softmax(-1), rows.softmax(-1))], dim=1)
    return colored_tokens_multi(list(str_tokens)[1:], values, ["logits", "log_probs", "probs"])


def _one_text(values: Any, ndim: int, name: str) -> torch.Tensor:
    """Without a batch axis of one."""
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim == ndim + 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != ndim:
        raise ShapeError(f"{name} are of one text, with {ndim} axes, and not of shape {tuple(tensor.shape)}")
    return tensor


# Predictions.


class _Words(Mapping[int, str]):
    """Token ids as text, asked for one by one."""

    def __init__(self, to_string: Callable[[int], str], count: int):
        self.to_string, self.count = to_string, count

    def __getitem__(self, token: int) -> str:
        return str(self.to_string(int(token)))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


def token_log_probs(token_indices: Any, log_probs: Any, to_string: Callable[[int], str], top_k: int = 10) -> Rendered:
    """A text coloured by the log-probability of each token, with the `top_k` that were expected there.

    Args:
        token_indices: `[pos]` or `[1, pos]`.
        log_probs: `[pos, d_vocab]` or `[1, pos, d_vocab]`; row i predicts token i + 1.
        to_string: a token id as text.
    """
    ids, scores = _one_text(token_indices, 1, "token_indices"), _one_text(log_probs, 2, "log_probs")
    words = _Words(to_string, scores.shape[-1])
    return Rendered.of(view.token_log_probs([words[int(one)] for one in ids], scores, words, ids, k=top_k))


# Neurons.


def text_neuron_activations(
    tokens: Any,
    activations: Any,
    first_dimension_name: str | None = "Layer",
    second_dimension_name: str | None = "Neuron",
    first_dimension_labels: Sequence[Any] | None = None,
    second_dimension_labels: Sequence[Any] | None = None,
) -> Rendered:
    """One text or several, coloured by a neuron that the reader chooses.

    Args:
        tokens: a list of strings, or a list of such lists.
        activations: `[pos, layer, neuron]`, or a list of those.
    """
    figure = view.text_neuron_activations(
        tokens,
        activations,
        layer_names=first_dimension_labels,
        neuron_names=second_dimension_labels,
        first_name=first_dimension_name or "Layer",
        second_name=second_dimension_name or "Neuron",
    )
    return Rendered.of(figure)


def topk_tokens(
    tokens: Sequence[Sequence[str]],
    activations: Any,
    max_k: int = 10,
    first_dimension_name: str = "Layer",
    third_dimension_name: str = "Neuron",
    sample_labels: Sequence[Any] | None = None,
    first_dimension_labels: Sequence[Any] | None = None,
) -> Rendered | RenderedPage:
    """For each neuron the tokens with the highest and the lowest activations; for several texts, one after another.

    Args:
        tokens: a list of texts, each a list of strings.
        activations: for each text `[layer, pos, neuron]`.
    """
    if len(tokens) != len(activations):
        raise ShapeError(f"there are {len(tokens)} texts, but {len(activations)} arrays of activations")
    names = (
        [f"Sample {number}" for number in range(len(tokens))] if sample_labels is None else [str(one) for one in sample_labels]
    )
    figures = []
    for words, one, name in zip(tokens, activations, names, strict=True):
        by_token = np.moveaxis(as_array(one, f"the activations of {name}", ndim=3), 1, 0)
        figure = view.topk_tokens(
            words,
            by_token,
            k=max_k,
            layer_names=first_dimension_labels,
            first_name=first_dimension_name,
            second_name=third_dimension_name,
        )
        figures.append(Rendered.of(figure.with_title(f"{figure.title}: {name}") if len(tokens) > 1 or sample_labels else figure))
    return under_headings("Tokens that activate most", figures, names)


def topk_samples(
    tokens: Sequence[Any],
    activations: Sequence[Any],
    zeroth_dimension_name: str | None = "Layer",
    first_dimension_name: str | None = "Neuron",
    zeroth_dimension_labels: Sequence[Any] | None = None,
    first_dimension_labels: Sequence[Any] | None = None,
) -> Rendered:
    """For each layer and neuron its texts, those with the highest activation first.

    Args:
        tokens: `[layer][neuron][sample][pos]`, strings.
        activations: the same, numbers.
    """
    names: list[str] = []
    texts: list[list[str]] = []
    rows: list[tuple[int, Any]] = []  # which neuron a text belongs to, and its activations
    for layer, (of_layer, values) in enumerate(zip(tokens, activations, strict=True)):
        for neuron, (samples, numbers) in enumerate(zip(of_layer, values, strict=True)):
            layer_name = zeroth_dimension_labels[layer] if zeroth_dimension_labels is not None else layer
            neuron_name = first_dimension_labels[neuron] if first_dimension_labels is not None else neuron
            names.append(f"{layer_name} · {neuron_name}")
            for sample, one in zip(samples, numbers, strict=True):
                texts.append(list(sample))
                rows.append((len(names) - 1, as_array(one, "activations", ndim=1)))
    padded = []
    for index, row in rows:
        everything = np.full((len(names), len(row)), np.nan, np.float32)
        everything[index] = row
        padded.append(everything)
    counts = [sum(index == name for index, _ in rows) for name in range(len(names))]
    menu = f"{zeroth_dimension_name or 'Layer'} · {first_dimension_name or 'Neuron'}"
    figure = view.top_samples(texts, padded, names=names, menu_name=menu, k=max(counts, default=0))
    order = [row[:count] for row, count in zip(figure.meta["order"], counts, strict=True)]
    return Rendered.of(replace(figure, meta=dict(figure.meta) | {"order": order}))


def hello(name: str) -> Rendered:
    """The example that says hello."""
    return Rendered.of(view.table(["greeting"], [[f"Hello {name}"]], title="Hello"))


def under_headings(title: str, figures: Sequence[Rendered], headings: Sequence[str]) -> Rendered | RenderedPage:
    """The figure, if it is one; several under a heading each."""
    if len(figures) == 1:
        return figures[0]
    sections = [view.Section(heading, [figure]) for heading, figure in zip(headings, figures, strict=True)]
    return RenderedPage(view.page(title, sections), figures)


# By the names of CircuitsVis' components.

COMPONENTS: dict[str, Callable[..., Rendered | RenderedPage]] = {
    "AttentionHeads": attention_heads,
    "AttentionPattern": attention_pattern,
    "AttentionPatterns": attention_patterns,
    "ColoredTokens": colored_tokens,
    "ColoredTokensMulti": colored_tokens_multi,
    "Hello": hello,
    "TextNeuronActivations": text_neuron_activations,
    "TokenLogProbs": token_log_probs,
    "TopkSamples": topk_samples,
    "TopkTokens": topk_tokens,
}


def render(react_element_name: str, **properties: Any) -> Rendered | RenderedPage:
    """A figure by the name of CircuitsVis' component and its properties (`attentionHeadNames` or `attention_head_names`).

    Raises:
        UnknownName: there is no component of this name; says the near ones.
    """
    if react_element_name not in COMPONENTS:
        near = nearest(react_element_name, COMPONENTS)
        raise UnknownName(f"no component called {react_element_name!r}{near}; there are {', '.join(COMPONENTS)}")
    given = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): value for name, value in properties.items()}
    return COMPONENTS[react_element_name](**given)


def render_local(react_element_name: str, **properties: Any) -> str:
    """The HTML of `render`."""
    return str(render(react_element_name, **properties))


def render_cdn(react_element_name: str, **properties: Any) -> str:
    """The same as `render_local`: nothing is fetched from anywhere."""
    return render_local(react_element_name, **properties)
