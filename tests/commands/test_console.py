"""What commands print cannot command a terminal."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cutaway
from cutaway.cli import app
from cutaway.commands import console

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb"


def test_control_characters_become_visible(capsys: pytest.CaptureFixture[str]) -> None:
    console.echo(HOSTILE + "\tnext\nline\ud800")
    said = capsys.readouterr().out
    assert said == "a\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u202eb\tnext\nline\\ud800\n"
    assert json.loads(f'"{console.visible(HOSTILE)}"') == HOSTILE


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": HOSTILE}))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "a.ipynb").write_text(json.dumps({"nbformat": 4, "metadata": {}, "cells": [{"cell_type": HOSTILE}]}))
    for command in (
        ["lens", str(tmp_path), "--text", "x"],
        ["lens", "first-unique-char", "--text", HOSTILE],
        ["lens", HOSTILE, "--text", "x"],
        ["notebook", str(tmp_path / "a.ipynb")],
        ["exercises", "start", HOSTILE],
        ["replay", str(tmp_path / HOSTILE.replace("/", ""))],
    ):
        result = CliRunner().invoke(app, command)
        assert (result.exit_code == 2 and not isinstance(result.exception, Exception)) or isinstance(result.exception, SystemExit)
        assert result.output and not console.CONTROLS.search(result.output), command


PACKAGE = Path(cutaway.__file__).parent
FILES = [PACKAGE / "cli.py", *(PACKAGE / "commands").glob("*.py")]


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "console.py"], ids=lambda path: path.name)
def test_commands_print_through_the_console(path: Path) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not called & {"typer.echo", "print", "click.echo", "sys.stdout.write", "sys.stderr.write"}
