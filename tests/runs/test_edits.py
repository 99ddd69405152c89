"""Edits: what each does, where it does it, and that it leaves its input alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway.errors import MissingActivation, ShapeError, UnknownSite
from cutaway.runs import edits
from tests.architectures import network, some_tokens

MODEL = network("gpt2")
TOKENS = some_tokens()
_, CACHE = MODEL.run_with_cache(TOKENS)
_, OTHER = MODEL.run_with_cache(some_tokens(seed=9))
Z = CACHE["blocks.1.attn.hook_z"]
VECTOR = torch.arange(6.0) + 1

CASES: list[tuple[edits.Change, dict[str, Any], Any]] = [
    (edits.zero(), {}, lambda x: x * 0),
    (edits.replace(2.5), {}, lambda x: x * 0 + 2.5),
    (edits.replace(VECTOR), {"heads": 2}, lambda x: x * 0 + VECTOR),
    (edits.patch(OTHER), {"positions": [1, 4]}, lambda x: OTHER["blocks.1.attn.hook_z"]),
    (edits.freeze(OTHER), {}, lambda x: OTHER["blocks.1.attn.hook_z"]),
    (edits.mean(OTHER), {"heads": [0, 3]}, lambda x: OTHER["blocks.1.attn.hook_z"].mean(0, keepdim=True).expand_as(x)),
    (edits.mean(OTHER, ("batch", "pos")), {}, lambda x: OTHER["blocks.1.attn.hook_z"].mean((0, 1), keepdim=True).expand_as(x)),
    (edits.mean(), {"heads": 1}, lambda x: x.mean(0, keepdim=True).expand_as(x)),
    (edits.resample(OTHER, order=torch.tensor([2, 0, 1])), {}, lambda x: OTHER["blocks.1.attn.hook_z"][[2, 0, 1]]),
    (edits.add(VECTOR, 0.5), {"examples": [0, 2]}, lambda x: x + 0.5 * VECTOR),
    (edits.scale(-3.0), {"positions": -1, "heads": [1, 3]}, lambda x: -3.0 * x),
    (edits.project_out(VECTOR), {}, lambda x: x - (x @ VECTOR / VECTOR.norm())[..., None] * VECTOR / VECTOR.norm()),
]


@pytest.mark.parametrize(("change", "where", "expected"), CASES)
def test_an_edit_changes_its_place_only_and_never_its_input(change: edits.Change, where: dict[str, Any], expected: Any) -> None:
    before = Z.clone()
    out = change.at(("z", 1), **where).apply(Z, MODEL.cfg)
    chosen = torch.zeros(Z.shape[:3], dtype=torch.bool)
    parts = [where.get(name) for name in ("examples", "positions", "heads")]
    numbers = [
        range(n) if part is None else torch.tensor(part).reshape(-1) % n for part, n in zip(parts, Z.shape[:3], strict=True)
    ]
    chosen[torch.meshgrid(*[torch.as_tensor(list(one)) for one in numbers], indexing="ij")] = True
    torch.testing.assert_close(out, torch.where(chosen[..., None], expected(Z), Z))
    assert torch.equal(Z, before)
    assert chosen.all() or not torch.equal(out, Z)


def test_projecting_out_leaves_nothing_along_the_direction() -> None:
    out = edits.project_out(VECTOR).at("z1").apply(Z, MODEL.cfg)
    assert (out @ VECTOR).abs().max() < 1e-4
    clamped = edits.project_out(VECTOR, instead=2.0).at("z1").apply(Z, MODEL.cfg)
    torch.testing.assert_close(clamped @ VECTOR / VECTOR.norm(), torch.full(Z.shape[:-1], 2.0), rtol=1e-4, atol=1e-4)


def test_a_mean_over_positions_of_a_pattern_is_over_destinations() -> None:
    pattern = CACHE["pattern", 1]
    for change in (edits.mean(over=("pos",)), edits.mean(CACHE, ("pos",))):
        out = change.at("pattern1", heads=2).apply(pattern, MODEL.cfg)
        torch.testing.assert_close(out[:, 2], pattern[:, 2].mean(1, keepdim=True).expand_as(pattern[:, 2]))
        assert torch.equal(out[:, :2], pattern[:, :2])


def test_a_resample_draws_the_same_order_for_the_same_seed() -> None:
    drawn = [edits.resample(OTHER, seed).at("z0").apply(CACHE["z", 0], MODEL.cfg) for seed in (3, 3, 0, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not all(torch.equal(drawn[0], one) for one in drawn[2:])
    assert all(any(torch.equal(row, other) for other in OTHER["z", 0]) for row in drawn[0])


def test_patterns_are_edited_by_destination_and_source() -> None:
    pattern = CACHE["pattern", 0]
    out = edits.zero().at("pattern0", heads=[0, 2], positions=[3, 5], sources=[1, 2, 4]).apply(pattern, MODEL.cfg)
    expected = pattern.clone()
    for head in (0, 2):
        for dest in (3, 5):
            for src in (1, 2, 4):
                expected[:, head, dest, src] = 0
    assert torch.equal(out, expected)


def test_functions_may_write_in_place_or_return() -> None:
    def in_place(x: torch.Tensor) -> None:
        x[:, 0] = 7

    out = edits.function(in_place).at("z0").apply(CACHE["z", 0], MODEL.cfg)
    assert (out[:, 0] == 7).all() and not (CACHE["z", 0][:, 0] == 7).any()
    doubled = edits.function(lambda x: 2 * x).at("z0").apply(CACHE["z", 0], MODEL.cfg)
    assert torch.equal(doubled, 2 * CACHE["z", 0])


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (edits.zero().at("z7"), UnknownSite, "no site called"),
        (edits.zero().at("z0", heads=4), ShapeError, "an edit at .*no head 4; there are 4, 0 to 3"),
        (edits.zero().at("z0", positions=[0, 9]), ShapeError, "no position 9; there are 9, 0 to 8"),
        (edits.zero().at("resid_pre0", heads=1), ShapeError, "has the axes batch, pos, d_model, so an edit there has no heads"),
        (edits.replace(torch.zeros(5)).at("z0"), ShapeError, r"values of shape \(5,\); the site has \(batch 3, pos 9, head 4"),
        (edits.patch({}).at("z0"), MissingActivation, "run_with_cache"),
        (edits.function(lambda x: x[:1]).at("z0"), ShapeError, "the function of an edit returned"),
        (edits.function(lambda x: x).at("z0", heads=1), ShapeError, "let it select by itself"),
    ],
)
def test_what_does_not_fit_is_refused(edit: edits.Edit, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        edit.apply(CACHE["z", 0], MODEL.cfg)


def test_a_mean_needs_axes_that_it_knows() -> None:
    with pytest.raises(ShapeError, match="'batch', 'pos' or both"):
        edits.mean(CACHE, ("head",))


@pytest.mark.parametrize("count", [2, 3, 5, 32])
def test_resampling_gives_no_example_its_own(count: int) -> None:
    x = torch.arange(float(count))[:, None, None].expand(count, 3, 4)
    for seed in range(40):
        values = edits.resample({"blocks.0.hook_resid_pre": x}, seed).source("blocks.0.hook_resid_pre")
        assert values is not None and bool((values != x).all()) and sorted(values[:, 0, 0].tolist()) == list(range(count))
    with pytest.raises(ShapeError, match="another example"):
        edits.resample({"blocks.0.hook_resid_pre": x[:1]}).source("blocks.0.hook_resid_pre")
