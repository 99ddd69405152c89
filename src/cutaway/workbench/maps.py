"""The map of a model: a value for every head and MLP, from the run of the prompt without switches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.analysis import attribution
from cutaway.errors import UnknownName, nearest
from cutaway.model.components import Component
from cutaway.model.transformer import Transformer
from cutaway.runs.activation_cache import ActivationCache
from cutaway.runs.decompose import written
from cutaway.workbench.runs import Between, KeptRun, nothing

ModelMap = Float[Tensor, "row layer"]
"""Rows are heads, then (where the model has them) the MLP."""

Seen = Bool[Tensor, "dest src"]


def rows(model: Transformer) -> list[str]:
    """What the rows of a map are called."""
    return [f"{head}" for head in range(model.cfg.n_heads)] + ([] if model.cfg.attn_only else ["MLP"])


def component(model: Transformer, row: int, layer: int) -> Component:
    """The component of a cell."""
    return Component("mlp", layer) if row == model.cfg.n_heads else Component("head", layer, row)


# Kinds of sources: for each query, the keys that are of the kind.


def _first(tokens: Tensor) -> Seen:
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    seen[:, 0] = True
    return seen


def _same(tokens: Tensor) -> Seen:
    return (tokens[:, None] == tokens[None]).tril(-1)


def _after_same(tokens: Tensor) -> Seen:
    return torch.nn.functional.pad(_same(tokens)[:, :-1], (1, 0)).tril()


def _previous(tokens: Tensor) -> Seen:
    return torch.eye(len(tokens), dtype=torch.bool).roll(1, 0).tril(-1)


KINDS: dict[str, Callable[[Tensor], Seen]] = {
    "first token": _first,
    "previous token": _previous,
    "itself": lambda tokens: torch.eye(len(tokens), dtype=torch.bool),
    "same token earlier": _same,
    "after the same token": _after_same,
}
SELECTED = "selected token"


def sources(roles: Mapping[str, int]) -> list[str]:
    """The kinds of sources that a map can show."""
    return [*KINDS, SELECTED, *(name for name in roles if name not in KINDS)]


def seen_as(source: str, tokens: Tensor, roles: Mapping[str, int], selected: int | None) -> Seen:
    """Which keys are of a kind, for each query.

    Raises:
        UnknownName: there is no such kind.
    """
    if source in KINDS:
        return KINDS[source](tokens)
    at = selected if source == SELECTED else roles.get(source)
    if at is None and source != SELECTED:
        raise UnknownName(f"no source called {source!r}{nearest(source, sources(roles))}; there are {', '.join(sources(roles))}")
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    if at is not None and at < len(tokens):
        seen[:, at] = True
    return seen


@torch.no_grad()
def attention(kept: KeptRun, seen: Seen, at: int | None, between: Between = nothing) -> ModelMap:
    """How much of each head's attention goes to some keys: from one query, or on average over those that have such keys.

    Raises:
        Whatever `between` raises.
    """
    cfg = kept.model.cfg
    queries = seen.any(1) if at is None else torch.arange(len(seen)) == at
    out = torch.zeros(cfg.n_heads, cfg.n_layers)
    for layer in range(cfg.n_layers):
        between()
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern = kept.gather([name])[name][0].float().cpu()
        attended = (pattern * seen).sum(-1)[:, queries]
        out[:, layer] = attended.mean(1) if attended.shape[1] else 0.0
    return out


@torch.no_grad()
def direct(kept: KeptRun, at: int, right: int, wrong: int | None, between: Between = nothing) -> ModelMap:
    """What each head and MLP adds to the answer's logit (or to the difference of two) directly."""
    cache = ActivationCache(kept.gather(attribution.sites(kept.model), between), kept.model)
    given = None if wrong is None else torch.tensor([wrong])
    values = attribution.attribute(cache, kept.tokens, targets=torch.tensor([right]), minus=given).values
    named = dict(zip(values.names("component"), values.data[:, 0, at].float().cpu(), strict=True))
    return _filled(kept.model, lambda one: named[str(one)])


@torch.no_grad()
def change(own: KeptRun, at: int, other: KeptRun, other_at: int, between: Between = nothing) -> ModelMap:
    """How far apart what each head and MLP writes is in the two prompts, at one position of each."""
    model = own.model
    every = [component(model, row, layer) for layer in range(model.cfg.n_layers) for row in range(len(rows(model)))]
    names = attribution.sites(model, components=list(map(str, every)))
    parts = []
    for kept, place in ((own, at), (other, other_at)):
        run = {name: value[:, place] for name, value in kept.gather(names, between).items()}
        parts.append(written(model, run, every)[:, 0])
    size = dict(zip(map(str, every), (parts[0] - parts[1]).norm(dim=-1).float().cpu(), strict=True))
    return _filled(model, lambda one: size[str(one)])


def _filled(model: Transformer, value: Callable[[Component], Tensor]) -> ModelMap:
    columns = [[component(model, row, layer) for layer in range(model.cfg.n_layers)] for row in range(len(rows(model)))]
    return torch.stack([torch.stack([value(one) for one in column]) for column in columns])
