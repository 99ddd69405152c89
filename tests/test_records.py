"""Records: what is written says everything, runs again to the same bits, and refuses another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import ablate_heads, attribute, records
from cutaway.cli import app
from cutaway.errors import CheckpointError, WeightsMismatch
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import Grid, heads, pairs, residual, sweep
from tests.architectures import network, some_tokens

MODEL, TOKENS = network("gpt2"), some_tokens(seed=2)
CACHE = MODEL.run_with_cache(some_tokens(seed=1))[1]
VECTOR = torch.linspace(-1, 1, 24)
TWO = [edits.zero().at("z0", heads=1), edits.scale(0.5).at(("mlp_out", 1), positions=[2, 3], examples=0)]
DIFFERENCE = metrics.logit_difference([1, 2, 3], [4, 5, 6])

EXPERIMENTS: list[tuple[Any, Any, dict[str, Any]]] = [
    (heads(), metrics.loss(TOKENS, by_position=True), {}),
    (residual(edits.patch(CACHE), layer=[1]), metrics.normalised(DIFFERENCE, clean=2.0, corrupted=-1.0), {}),
    (heads(edits.mean()), metrics.kl([2, -1]), {"skip": "layers"}),
    (heads(), metrics.probability_difference([[1, 2]], [[3], [4, 5], [6]]), {}),
    (Grid(edits.resample(CACHE, 5), "z"), metrics.rank([1, 2, 3]), {"mask": torch.tensor([[0] + [1] * 8] + [[1] * 9] * 2)}),
    (Grid(edits.mean(CACHE, ("batch", "pos")), "z"), metrics.accuracy(TOKENS, TOKENS.flip(0)), {}),
    ([edits.add(VECTOR, 2.0).at("resid_pre1"), edits.project_out(VECTOR).at("resid_pre0", positions=-1)], DIFFERENCE, {}),
    (pairs(TWO), metrics.probability([1, 2, 3]), {}),
    (residual(edits.patch(CACHE)), DIFFERENCE, {"method": "screen", "top": 4}),
    (heads(edits.mean()), metrics.loss(TOKENS, by_position=True), {"baseline": 3, "seed": 5}),
    (residual(edits.patch(CACHE)), metrics.loss(TOKENS, by_position=True), {"method": "screen", "top": 4, "baseline": 3}),
    (heads(edits.random(edits.add(VECTOR[:6]), 4)), DIFFERENCE, {"baseline": 1}),
    (heads(edits.replace(0.3)), metrics.log_probability([1, 2, 3]), {"dtype": torch.bfloat16, "memory": 10**6}),
]


@pytest.mark.parametrize(("some", "metric", "options"), EXPERIMENTS)
def test_a_record_runs_again_to_the_same_bits(some: Any, metric: Any, options: Any, tmp_path: Path) -> None:
    done = sweep(MODEL, TOKENS, some, metric, **options)
    records.write(tmp_path / "one", done, "somewhere")
    record = records.read_record(tmp_path / "one")
    assert torch.equal(record.tensors["tokens"], TOKENS)
    again = records.replay(record, MODEL)
    assert again.same_bits and again.difference == 0 and "the same bits" in again.summary()
    assert record.labels == [" + ".join(edit.label for edit in one) for one in done.task.cells.edits]


def test_a_record_says_what_it_was(tmp_path: Path) -> None:
    done = sweep(MODEL, TOKENS, heads(), DIFFERENCE, seed=7)
    records.write(tmp_path, {"first": done, "second": done}, "somewhere")
    about = json.loads((tmp_path / "first" / records.RECORD).read_text())
    assert about["model"]["name"] == "somewhere" and len(about["model"]["hash"]) == 32
    assert about["options"]["seed"] == 7 and about["versions"]["torch"] == torch.__version__
    assert about["audit"]["difference"] == done.audit.difference
    assert [record.folder.name for record in records.records_in(tmp_path)] == ["first", "second"]
    with pytest.raises(CheckpointError, match="it holds the records first, second"):
        records.read_record(tmp_path)
    with pytest.raises(CheckpointError, match="holds a record already"):
        records.write(tmp_path / "first", done, "somewhere")
    with pytest.raises(CheckpointError, match="second holds a record already"):
        records.write(tmp_path, {"third": done, "second": done}, "somewhere")
    assert not (tmp_path / "third").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        records.write(tmp_path / "file", done, "somewhere")


def test_another_model_is_refused_with_both_hashes(tmp_path: Path) -> None:
    records.write(tmp_path / "one", sweep(MODEL, TOKENS, heads(), DIFFERENCE), "somewhere")
    record = records.read_record(tmp_path / "one")
    other = network("gpt2", seed=3)
    with pytest.raises(WeightsMismatch, match=record.about["model"]["hash"]) as caught:
        records.replay(record, other)
    assert records.model_hash(other) in str(caught.value)
    with torch.no_grad():
        other.load_state_dict(MODEL.state_dict())
    assert records.model_hash(other) == records.model_hash(MODEL)


def test_a_change_is_found_where_it_is(tmp_path: Path) -> None:
    records.write(tmp_path / "one", sweep(MODEL, TOKENS, heads(), DIFFERENCE), "somewhere")
    record = records.read_record(tmp_path / "one")
    record.tensors["values"][1, 2, 0] += 0.5
    again = records.replay(record, MODEL)
    assert not again.same_bits and again.cell == "zero blocks.1.attn.hook_z head 2" and again.difference > 0.01
    assert again.cell in again.summary()
    text = (tmp_path / "one" / records.RECORD).read_text()
    (tmp_path / "one" / records.RECORD).write_text(json.dumps(json.loads(text) | {"digest": None, "notes": ["edited"]}))
    unsealed = records.replay(records.read_record(tmp_path / "one"), MODEL).summary()
    assert unsealed.endswith("the same bits; the record has no digest, so whether its labels were edited is not known")


def test_a_baseline_is_recorded_and_held_to_its_record(tmp_path: Path) -> None:
    done = sweep(MODEL, TOKENS, heads(), DIFFERENCE, baseline=3)
    records.write(tmp_path / "one", done, "somewhere")
    record = records.read_record(tmp_path / "one")
    assert done.baseline is not None and torch.equal(record.tensors["baseline"], done.baseline.values.data)
    assert record.about["options"]["baseline"] == 3
    record.tensors["baseline"][1, 0] += 0.5
    again = records.replay(record, MODEL)
    assert not again.same_bits and again.cell == done.baseline.values.names("cell")[1] and again.difference > 0.01


def test_two_records_are_compared_cell_by_cell(tmp_path: Path) -> None:
    for name, tokens, grid in (("one", TOKENS, heads()), ("other", some_tokens(seed=8), heads(layer=[1]))):
        records.write(tmp_path / name, sweep(MODEL, tokens, grid, DIFFERENCE), "somewhere")
    one, other = (records.read_record(tmp_path / name) for name in ("one", "other"))
    same = records.compare(one, one)
    assert same.differs == () and same.difference == 0 and same.correlation == pytest.approx(1)
    found = records.compare(one, other)
    records.write(tmp_path / "third", sweep(MODEL, TOKENS, heads(), metrics.logit_difference([1, 2, 3], [4, 5, 7])), "somewhere")
    assert records.compare(one, records.read_record(tmp_path / "third")).differs == ("metric",)
    assert found.differs == ("tokens",) and len(found.cells) == 4 and found.only == (4, 0)
    label, mine, theirs = found.cells[0]
    assert abs(mine - theirs) == max(abs(a - b) for _, a, b in found.cells) and label in found.summary()


def test_functions_cannot_be_recorded(tmp_path: Path) -> None:
    for some, metric in ((heads(), lambda logits: logits[:, -1, 3].mean()), ([edits.function(lambda x: x).at("z0")], DIFFERENCE)):
        with pytest.raises(CheckpointError, match="functions, which a record cannot hold"):
            records.write(tmp_path / "one", sweep(MODEL, TOKENS, some, metric), "somewhere")
    assert not (tmp_path / "one").exists()


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    records.write(tmp_path / "one", sweep(MODEL, TOKENS, heads(), DIFFERENCE), "somewhere")
    whole = (tmp_path / "one" / records.TENSORS).read_bytes()
    (tmp_path / "one" / records.TENSORS).write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        records.read_record(tmp_path / "one")
    (tmp_path / "one" / records.RECORD).write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        records.read_record(tmp_path / "one")
    with pytest.raises(CheckpointError, match="there is no record"):
        records.read_record(tmp_path / "two")


# Commands.


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_commands_record_and_replay(tmp_path: Path) -> None:
    words = ["ablate", "first-unique-char", "--text", "chgegfaea", "--site", "z", "--site", "q", "--baseline", "4",
             "--record", str(tmp_path / "a")]  # fmt: skip
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found["baseline"]["values"]["labels"]["cell"]) == 4
    assert "4 random changes of the same size" in run(*words[:-2]).stdout
    assert set(found["heads"]["zero"]) == {"z", "q"} and len(found["heads"]["zero"]["z"]) == 6
    early = run("ablate", "no-such-model", "--text", "a", "--record", str(tmp_path / "a"))
    assert early.exit_code == 2 and "holds a record already" in early.stderr, "asked before anything is loaded"
    again = run("replay", str(tmp_path / "a"))
    assert again.exit_code == 0 and "the same bits" in again.stdout
    compared = run("compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json")
    assert json.loads(compared.stdout)["difference"] == 0
    refused = run("replay", str(tmp_path / "a"), "--model", "attn-only-2l")
    assert refused.exit_code == 2 and "hash" in refused.stderr


def test_patching_from_the_command_line(tmp_path: Path) -> None:
    words = ["patch", "first-unique-char", "--clean", "abcab", "--corrupted", "abcac", "--answer", "c", "--wrong", "b"]
    page = tmp_path / "page.html"
    more = ["--html", str(page), "--record", str(tmp_path / "p"), "--baseline", "2"]
    done = run(*words, "--what", "resid_pre", "--what", "z", *more)
    assert done.exit_code == 0, done.output
    assert "largest shares of that difference restored" in done.stdout and page.stat().st_size > 1000
    assert done.stdout.count("2 random changes of the same size") == 2
    assert run("replay", str(tmp_path / "p")).stdout.count("the same bits") == 2
    early = run("patch", "no-such-model", *words[2:], "--what", "q", "--what", "z", "--record", str(tmp_path / "p"))
    assert early.exit_code == 2 and "z holds a record already" in early.stderr, "asked before anything is loaded"
    longer = run("patch", "first-unique-char", "--clean", "abcab", "--corrupted", "abca", "--answer", "c", "--wrong", "b")
    assert longer.exit_code == 2 and "They differ from position" in longer.stderr
    several = run(*words[:-1], "bc")
    assert several.exit_code == 2 and "is 2 tokens, not one" in several.stderr and "give one token" in several.stderr


def test_a_plan_from_the_command_line() -> None:
    done = run("plan", "first-unique-char", "--text", "chgegfaea", "--what", "resid_pre", "--json")
    assert json.loads(done.stdout)["cells"] == 20
    assert "times fewer" in run("plan", "first-unique-char", "--text", "chgeg", "--answer", "c", "--wrong", "h").stdout
    beside = run("plan", "first-unique-char", "--text", "chgeg", "--baseline", "5").stdout
    assert beside.startswith("6 cells (6 join) and 5 random changes in 2 passes")
    half = run("plan", "first-unique-char", "--text", "chgeg", "--answer", "c")
    assert half.exit_code == 2 and "both --answer and --wrong" in half.stderr
    assert run("plan", "first-unique-char", "--text", "chgeg", "--memory", "0.001").exit_code == 2


def test_what_is_made_of_sweeps_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    found = ablate_heads(MODEL, TOKENS, DIFFERENCE, kinds=["zero"], sites=["z"])
    record = records.read_record(records.write(tmp_path / "one", found, "somewhere"))
    assert records.replay(record, MODEL).agrees
    with pytest.raises(CheckpointError, match=r"Attribution is not made of sweeps.*save\('x.cutaway'\)"):
        records.write(tmp_path / "two", attribute(MODEL, TOKENS), "somewhere")
    assert not (tmp_path / "two").exists()
