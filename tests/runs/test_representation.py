"""Edits, grids and metrics are written short, whatever tensors they hold, and no number of a tensor is looked at for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway import grids, metrics
from cutaway.runs import edits
from cutaway.runs.representation import short_repr
from tests.architectures import network, some_tokens

STORE = network("gpt2").run_with_cache(some_tokens())[1]
LONG: dict[str, Any] = {
    "patch": edits.patch(STORE), "mean": edits.mean(STORE), "resample": edits.resample(STORE), "freeze": edits.freeze(STORE),
    "add": edits.add(torch.ones(24)), "replace": edits.replace(torch.ones(24)), "project out": edits.project_out(torch.ones(24)),
    "grid": grids.heads(edits.patch(STORE)), "cells": grids.heads(edits.patch(STORE)).cells(network("gpt2").cfg, 8),
    "difference": metrics.logit_difference(torch.arange(12), torch.arange(12).roll(1)), "loss": metrics.loss(some_tokens()),
    "normalised": metrics.normalised(metrics.logit_difference([1], [2]), clean=1.0, corrupted=0.0),
    "words": metrics.logit_difference(" a", " b"),
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_it_is_short_and_names_what_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("a tensor's numbers were looked at")

    monkeypatch.setattr(torch.Tensor, "__repr__", refuse)
    text = repr(LONG[name])
    assert len(text) < 200 and type(LONG[name]).__name__ in text


def test_fields_that_are_their_defaults_are_left_out() -> None:
    assert repr(edits.scale(0.5)) == "Scale(factor=0.5)" and repr(edits.zero()) == "Zero()"
    assert short_repr({"a": torch.ones(2, 3)}) == "{'a': <2×3 numbers>}" and short_repr(torch.tensor(2)) == "2"
