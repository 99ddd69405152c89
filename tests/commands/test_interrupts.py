"""Ctrl-C in any command says what is kept and how to go on, and what it says is so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cutaway.cli import app
from cutaway.collect import collecting
from cutaway.commands.interrupts import ENDS, KEPT, Interruptible
from cutaway.many import across_models
from cutaway.runs.sweep.engine import BatchRun

MODEL = "attn-only-2l"


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        whole = f"{before} {name}".strip()
        yield from commands(one, whole) if hasattr(one, "commands") else [(whole, one)]


def interrupted(command: Any, **given: Any) -> str:
    """What the command says when it is interrupted with these options."""

    def callback(**_: Any) -> None:
        raise KeyboardInterrupt

    command.callback = callback
    context = typer.Context(command, info_name=command.name)
    context.params = {one.name: None for one in command.params} | given
    with pytest.raises(KeyboardInterrupt) as found:
        command.invoke(context)
    return str(found.value)


@pytest.mark.parametrize("name", dict(commands(typer.main.get_command(app))))
def test_every_command_says_what_an_interrupt_leaves(name: str) -> None:
    command = dict(commands(typer.main.get_command(app)))[name]
    assert isinstance(command, Interruptible)
    option = KEPT.get(name, ("", ""))[0]
    assert not option or option in [one.name for one in command.params]
    given = {option: "FOLDER"} if option else {"out": "FOLDER"}
    said = interrupted(command, **given)
    assert ("FOLDER" in said and ("the same command" in said)) if option else name in ENDS or said == "nothing is kept"


def test_without_a_folder_it_says_how_to_keep_something() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert "with --results FOLDER what is finished is" in interrupted(found["patch"])
    assert interrupted(found["collect"], out="FOLDER", plan=True) == "nothing is kept"


def test_it_says_that_something_is_kept_only_where_something_is(tmp_path: Path) -> None:
    patch = dict(commands(typer.main.get_command(app)))["patch"]
    folder = tmp_path / "r"
    assert "nothing was finished yet" in interrupted(patch, results=folder)
    (folder / "values").mkdir(parents=True)
    for before in ("plans", "asked"):  # written before the first cell is run
        (folder / before).mkdir()
        (folder / before / "one").touch()
    assert "nothing was finished yet" in interrupted(patch, results=folder)
    (folder / "values" / "one").touch()
    assert "what is finished is kept" in interrupted(patch, results=folder)
    collect = dict(commands(typer.main.get_command(app)))["collect"]
    assert "are kept in s3://bucket/x" in interrupted(collect, out="s3://bucket/x")


def pairs(folder: Path) -> Path:
    answers = {"answer": " a", "wrong": " the"}
    rows = [{"clean": f"the {word} was", "corrupted": f"a {word} was", **answers} for word in ("man", "day")]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def stop_after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is interrupted when it has been called so often."""
    calls = iter(range(count))

    def called(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return found

    return called


def goes_on(words: list[str], said: str, undo: Callable[[], None]) -> Any:
    """Interrupted, the command says so; the same again, after `undo`, goes to the end: what that prints."""
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 130 and said in first.stderr, f"{first.output} {first.exception!r}"
    undo()
    again = CliRunner().invoke(app, [*words, "--json"])
    assert again.exit_code == 0, again.output
    return json.loads(again.stdout)


def test_a_collection_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.txt").write_text("\n".join(f"line {number} of a corpus" for number in range(24)))
    out = str(tmp_path / "out")
    monkeypatch.setattr(collecting.Settled, "chunks", chunks_that_stop(collecting.Settled.chunks))
    words = ["collect", MODEL, str(tmp_path / "corpus.txt"), "--lines", "--out", out, "--sites", "z0", "--chunk", "128"]
    said = f"interrupted: the chunks that are finished are kept in {out}; the same command goes on"
    again = goes_on(words, said, monkeypatch.undo)
    assert again["reused"] > 0


def chunks_that_stop(chunks: Callable[..., Any]) -> Callable[..., Any]:
    def some(self: Any) -> Iterator[Any]:
        for number, chunk in enumerate(chunks(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield chunk

    return some


def test_answers_of_many_models_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = str(tmp_path / "results")
    monkeypatch.setattr(across_models._Run, "_count", stop_after(0, across_models._Run._count))
    words = ["across", "heads", MODEL, "--pairs", str(pairs(tmp_path)), "--rows", "1", "--results", results]
    said = f"interrupted: the answers that are finished are kept in {results}; the same command computes"
    again = goes_on(words, said, monkeypatch.undo)
    assert again["reused"] > 0 and again["computed"] > 0


def test_a_sweep_with_results_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = str(tmp_path / "results")
    monkeypatch.setattr(BatchRun, "values", stop_after(1, BatchRun.values))
    words = ["patch", MODEL, "--pairs", str(pairs(tmp_path)), "--results", results, "--kinds", "z,resid_pre"]
    kept: list[tuple[Path, int]] = []

    def undo() -> None:
        kept.extend((path, path.stat().st_mtime_ns) for path in Path(results).rglob("*") if path.is_file())
        monkeypatch.undo()

    goes_on(words, f"interrupted: what is finished is kept in {results}; the same command goes on", undo)
    assert kept and all(path.stat().st_mtime_ns == before for path, before in kept)
