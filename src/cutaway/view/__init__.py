"""Arrays and labels go in, figures come out; nothing here ever sees a model.

Each function below returns a `Figure`: data that draws itself in a notebook, a saved file or a page, offline.
"""

from __future__ import annotations

from cutaway.errors import suggest_names
from cutaway.view.attention import attention_patterns, head_gallery, head_types
from cutaway.view.charts import bar_chart, line_chart, steering_response, table
from cutaway.view.contributions import attribution
from cutaway.view.edges import circuit_layers
from cutaway.view.figure import Figure
from cutaway.view.grids import Panel, circuit, heat_map, lens_grid, small_multiples, sweep_grid
from cutaway.view.pages import Code, Page, Section, page
from cutaway.view.texts import colored_tokens, text_neuron_activations, token_log_probs, top_samples, topk_tokens
from cutaway.view.vocabulary import vocabulary_circuit

__all__ = [
    "Code",
    "Figure",
    "Page",
    "Panel",
    "Section",
    "attention_patterns",
    "attribution",
    "bar_chart",
    "circuit",
    "circuit_layers",
    "colored_tokens",
    "head_gallery",
    "head_types",
    "heat_map",
    "lens_grid",
    "line_chart",
    "page",
    "small_multiples",
    "steering_response",
    "sweep_grid",
    "table",
    "text_neuron_activations",
    "token_log_probs",
    "top_samples",
    "topk_tokens",
    "vocabulary_circuit",
]

suggest_names(__name__)
