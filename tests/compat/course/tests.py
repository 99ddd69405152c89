"""A stand-in for the checks of an exercise notebook: the same names, each trying a function on plain cases."""

from collections.abc import Callable
from typing import Any

import torch

TEXT = "one two three four one two three four"


def _cache(model: Any) -> tuple[Any, Any]:
    tokens = model.to_tokens(TEXT)
    return tokens, model.run_with_cache(tokens, remove_batch_dim=True)[1]


def _heads(names: Any) -> None:
    assert isinstance(names, list) and all(isinstance(name, str) for name in names), names


def test_average_over_condition(function: Callable[..., Any]) -> None:
    values = torch.arange(18.0).reshape(2, 3, 3)
    torch.testing.assert_close(function(values, lambda query, key: query == key), torch.tensor([4.0, 13.0]))


def test_current_attn_detector(function: Callable[..., Any], model: Any) -> None:
    _heads(function(_cache(model)[1]))
    assert function(_cache(model)[1], threshold=2.0) == []


test_prev_attn_detector = test_current_attn_detector
test_first_attn_detector = test_current_attn_detector


def test_induction_attn_detector(function: Callable[..., Any], model: Any) -> None:
    tokens, cache = _cache(model)
    _heads(function(cache, tokens))
    assert function(cache, tokens, threshold=2.0) == []


def test_logit_attribution(function: Callable[..., Any], model: Any) -> None:
    tokens, cache = _cache(model)
    found = function(tokens, model, cache, 3)
    z = torch.stack([cache["z", layer][3] for layer in range(model.cfg.n_layers)])
    direction = model.W_U[:, tokens[0, 4]]
    bias = model.b_U[tokens[0, 4]]
    torch.testing.assert_close(found, torch.einsum("lhd,lhdm,m->lh", z, model.W_O, direction) + bias, rtol=1e-4, atol=1e-4)
