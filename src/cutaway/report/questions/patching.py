"""Activation patching between minimal pairs: at which layer and where the stream carries the answer, and through which heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from cutaway.report.findings import Finding
from cutaway.report.study import Study
from cutaway.runs import edits
from cutaway.runs.answer_metrics import AnswerMetric
from cutaway.runs.editing import run
from cutaway.runs.estimates import Value, shares
from cutaway.runs.places import Places, at_roles
from cutaway.runs.sweep import sweep
from cutaway.view import heat_map

PAIRS, PLACES = 64, 24  # pairs that are patched (16 of a large model), positions that are


def lacks(study: Study) -> str:
    """Patching needs pairs whose answers differ."""
    if study.prompts.corrupted is None:
        return "there are no minimal pairs"
    return "" if not study.prompts.wrong or any(study.prompts.wrong) else "no pair has different answers"


def passes(study: Study) -> float:
    """About a third of a pass for each cell, on some of the prompts."""
    part = len(some(study).prompts) / len(study.prompts)
    places = len(columns(some(study)))
    return part * 0.33 * study.model.cfg.n_layers * (places + (0.4 if study.large else 1) * study.model.cfg.n_heads)


def some(study: Study) -> Study:
    """The study of the pairs that are patched: those whose answers differ somewhere."""
    prompts = study.prompts
    rows = [row for row in range(len(prompts)) if not prompts.wrong or prompts.wrong[row]]
    return replace(study, prompts=prompts[rows[: 16 if study.large else PAIRS]])


def metric(study: Study) -> AnswerMetric:
    """What pairs differ in: the lead over the counterpart's answers where they are given, else the loss."""
    read = "lead" if study.prompts.wrong else "decisions" if study.above else "loss"
    return AnswerMetric.of(study.prompts, read, study.model.cfg.d_vocab_out)


def columns(study: Study) -> dict[str, Places]:
    """Name → its position in each prompt: roles where there are some, else positions where pairs differ or answers are."""
    if len(study.prompts.roles) > 1:
        return {role: at_roles(study.prompts, role) for role in study.prompts.roles}
    differs = (study.prompts.tokens != study.corrupted.tokens).any(0) | study.prompts.answered.any(0)
    chosen = differs.nonzero().flatten().tolist()
    chosen = chosen if len(chosen) <= PLACES else chosen[:: -(-len(chosen) // PLACES)]
    return {str(at): Places((at,), strict=False) for at in chosen}  # prompts too short for it go without


def ask(study: Study) -> list[Finding]:
    """What the clean stream restores in the corrupted run, by place and layer; the same for heads at all positions."""
    small, layers = some(study), range(study.model.cfg.n_layers)
    prompts, measured, places = small.prompts, metric(small), columns(small)
    clean = small.run(prompts, [f"blocks.{l}.{site}" for l in layers for site in ("hook_resid_pre", "attn.hook_z")])
    change = edits.patch(dict(clean.cache_dict))
    stream = [change.at(("resid_pre", l), positions=at) for at in places.values() for l in layers]
    heads = [change.at(("z", l), heads=h) for l in layers for h in range(study.model.cfg.n_heads)]
    whole = run(study.model, prompts.tokens, metric=measured, mask=small.mask).value
    assert whole is not None

    def recovered(labels: Iterable[str], cells: list[edits.Edit], name: str, **how: object) -> dict[str, Value]:
        done = sweep(study.model, small.corrupted.tokens, cells, measured, mask=small.mask, seed=study.seed, **how)
        study.sweeps[name] = done
        return shares(labels, (done.values.data - done.clean.data).double(), (whole - done.clean.data).double())

    by_place = list(recovered(map(str, range(len(stream))), stream, "patched stream").values())
    by_head = recovered(small.heads, heads, "patched heads", **({"method": "screen", "top": 16} if study.large else {}))
    on = f"{len(prompts):,} pairs"
    return [*_streams(places, by_place, len(layers), on), Finding(
        "largest", "the share of the difference that one head restores", by_head, "share",
        Value(0.0), "nothing restored", on, two_sided=True)]  # fmt: skip


def _streams(places: Iterable[str], values: list[Value], layers: int, on: str) -> list[Finding]:
    """A trend along layers for each place that ever carries something, and a map of them all."""
    rows = {name: values[n * layers : (n + 1) * layers] for n, name in enumerate(places)}
    grid = torch.tensor([[value.value for value in row] for row in rows.values()])
    heat = heat_map(
        grid, [str(layer) for layer in range(layers)], list(rows), x_name="layer", y_name="position", value_name="restored",
        title="What the stream before each layer restores",
    )  # fmt: skip
    if layers == 1:
        only = {name: row[0] for name, row in rows.items()}
        what = "the share of the difference that the stream at a position restores"
        return [Finding("largest", what, only, "share", Value(0.0), "nothing restored", on, two_sided=True)]
    order = sorted(rows, key=lambda name: -max(abs(value.value) for value in rows[name]))[:6]
    return [
        Finding("trend", f"the share of the difference that the stream at {name} restores",
                {str(layer): value for layer, value in enumerate(rows[name])}, "share", Value(0.0), "nothing restored", on,
                axis="layers", figures=[heat] if name == order[0] else [])
        for name in order
    ]  # fmt: skip
