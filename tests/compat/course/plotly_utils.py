"""A stand-in for the course's plotting helpers: the arguments that its notebooks give, drawn by plotly."""

from typing import Any

import numpy as np
import plotly.express as px
import torch


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def imshow(values: Any, text: Any = None, xaxis_tickangle: int | None = None, **options: Any) -> None:
    """Show a matrix; `text` is written into its cells."""
    figure = px.imshow(_array(values), color_continuous_scale="RdBu", color_continuous_midpoint=0.0, **options)
    if text is not None:
        figure.data[0].update(text=text, texttemplate="%{text}")
    figure.update_layout(xaxis_tickangle=xaxis_tickangle)
    figure.show()


def bar(values: Any, **options: Any) -> None:
    """Show bars."""
    px.bar(y=_array(values), **options).show()


def hist(values: Any, **options: Any) -> None:
    """Show a histogram."""
    px.histogram(x=_array(values).ravel(), **options).show()
