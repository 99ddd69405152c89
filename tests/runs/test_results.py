"""Results: parts, means, groups, intervals, frames and JSON of labelled arrays."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cutaway.errors import ShapeError, UnknownName
from cutaway.runs.results import Labelled, Means, Result, grouped, plain
from cutaway.view import Figure, bar_chart


def values(batch: int = 6, pos: int = 4) -> Labelled:
    data = torch.arange(2 * batch * pos, dtype=torch.float32).view(2, batch, pos)
    return Labelled(data, ("head", "batch", "pos"), {"head": ["0.0", "0.1"]}, "score", "nats")


def test_parts_by_label_and_by_number() -> None:
    found = values()
    assert torch.equal(found.sel(head="0.1").data, found.data[1])
    assert found.sel(head="0.1", pos=[-1, 0]).axes == ("batch", "pos")
    assert torch.equal(found.sel(head="0.1", pos=[-1, 0]).data, found.data[1][:, [3, 0]])
    assert found.sel(head=["0.1"]).names("head") == ("0.1",)
    assert found.sel(head=1, batch=2, pos=3).item() == float(found.data[1, 2, 3])


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ({"heads": 0}, "did you mean 'head'"),
        ({"head": "0.2"}, "did you mean '0.1' or '0.0'"),
        ({"pos": 4}, "4 entries along 'pos'"),
    ],
)
def test_what_is_not_there_is_named(which: dict[str, object], said: str) -> None:
    with pytest.raises(UnknownName, match=said):
        values().sel(**which)  # type: ignore[arg-type]


def test_axes_and_labels_must_fit() -> None:
    with pytest.raises(ShapeError, match="but the axes"):
        Labelled(torch.zeros(2, 3), ("head",))
    with pytest.raises(ShapeError, match="2 entries along 'head', but 1 labels"):
        Labelled(torch.zeros(2), ("head",), {"head": ["x"]})


def test_no_gradient_flows_from_a_result() -> None:
    assert not Labelled(torch.ones(2, requires_grad=True), ("head",)).data.requires_grad


def test_means_leave_gaps_out() -> None:
    found = values()
    found.data[0, 0] = math.nan
    assert torch.equal(found.mean("batch").data[0], found.data[0, 1:].mean(0))
    means = found.means("batch")
    assert means.count.data[0].tolist() == [5] * 4
    assert torch.equal(means.mean.data, found.mean("batch").data)
    assert bool((means.low.data <= means.mean.data).all() and (means.mean.data <= means.high.data).all())


def test_groups_equal_the_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    found = Labelled(torch.randn(2, 6, 4, generator=draw), ("head", "batch", "pos"), {"head": ["0.0", "0.1"]})
    classes = torch.randint(-1, 3, (6, 4), generator=draw)
    where = torch.rand(6, 4, generator=draw) > 0.3
    means = grouped(found, classes, ["a", "b", "c"], where=where, axis="token")
    for head in range(2):
        for group in range(3):
            chosen = found.data[head][(classes == group) & where]
            assert means.values.data[head, group] == pytest.approx(float(chosen.mean()), abs=1e-6)
            assert float(means.count.data[group]) == len(chosen)
    assert means.sel(token="b").values.names("head") == ("0.0", "0.1")


def test_groups_must_fit() -> None:
    with pytest.raises(ShapeError, match="do not fit"):
        grouped(values(), torch.zeros(2, 2, dtype=torch.long), ["a"])
    with pytest.raises(ShapeError, match="groups go up to 3, but there are 1 names"):
        grouped(values(), torch.full((6, 4), 3), ["a"])


def test_frames_and_dictionaries_hold_every_number() -> None:
    found = values(2, 2)
    frame = found.to_frame()
    assert list(frame.columns) == ["head", "layer", "head_index", "batch", "pos", "value"]
    assert frame["layer"].tolist() == [0] * 8 and frame["head_index"].tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(frame["value"].to_numpy(), found.data.flatten().numpy())
    assert frame.loc[4, "head"] == "0.1"
    assert found.mean("batch").as_dict(2) == {"0.0": [1.0, 2.0], "0.1": [5.0, 6.0]}


def test_json_has_no_nan() -> None:
    found = Labelled(torch.tensor([1.0, math.nan]), ("head",), {"head": ["0.0", "0.1"]})
    assert json.loads(json.dumps(found.to_json()))["values"] == [1.0, None]
    assert plain({"a": (1, torch.tensor(math.inf)), 2: None}) == {"a": [1, None], "2": None}


def test_means_draw_lines_over_positions_and_bars_over_names() -> None:
    means = values().means()
    assert means.figure().view == "lines"
    assert grouped(values(), torch.zeros(6, 4, dtype=torch.long), ["a"]).figure().view == "bars"
    assert "0.1 · 3" in means.summary()
    assert set(means.to_frame().columns) >= {"value", "low", "high"}


def test_a_result_is_its_fields() -> None:
    @dataclass(frozen=True, eq=False)
    class Found(Result):
        values: Labelled
        means: Means

        def figure(self) -> Figure:
            return bar_chart(["a"], [1.0])

        def summary(self) -> str:
            return "one line"

    found = Found(values(), values().means())
    assert str(found) == "one line"
    assert set(json.loads(json.dumps(found.to_json()))) == {"values", "means"}
