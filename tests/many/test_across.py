"""One question across models and prompts: the answers of the plain calls, kept by what they are, the same bytes anywhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import HookedTransformer, ablate, across, circuit_for, edits, loading, many, metrics, patch, report, sweep
from cutaway.cli import app
from cutaway.errors import CheckpointError, ConfigError, UnknownModel, WorkerFailed
from cutaway.executors import Processes
from cutaway.many import job, planning
from cutaway.model import kernels
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.report.reporting import joined
from cutaway.sources import files
from cutaway.tasks import behaviour
from tests.architectures import flop_counter, network, some_tokens

NAME = "attn-only-2l"


@pytest.fixture(scope="module")
def model() -> Transformer:
    return loading.from_pretrained(Transformer, NAME)


@pytest.fixture(scope="module")
def pairs(model: Transformer) -> Prompts:
    return behaviour("induction").tokens_prompts(6, model.cfg.d_vocab, 0)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def checkpoints(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two steps of a training run, as files."""
    folder, made = tmp_path_factory.mktemp("steps"), []
    for step, scale in ((100, 0.5), (200, 1.0)):
        weights = {name: x * scale if name.endswith("W_O") else x for name, x in model.state_dict().items()}
        path = folder / f"step-{step}.safetensors"
        files.save(path, weights, model.cfg, tokenizer=model.tokenizer, processed=True)
        made.append(str(path))
    return made


def tree(folder: Path) -> dict[str, str]:
    return {one.name: hashlib.md5(one.read_bytes()).hexdigest() for one in (folder / job.ANSWERS).iterdir()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of functions, each time one is called by `across` in this process."""
    seen: list[str] = []
    real = job.function_of

    def function_of(name: str) -> Any:
        seen.append(name)
        return real(name)

    monkeypatch.setattr(job, "function_of", function_of)
    return seen


def test_answers_are_those_of_plain_calls_and_widening_computes_what_is_new(
    model: Transformer, pairs: Prompts, checkpoints: list[str], tmp_path: Path, calls: list[str]
) -> None:
    sets = {"all": pairs, "half": pairs[:3]}
    found = across(patch, {"a": checkpoints[0]}, sets, results=tmp_path, kinds=["z"], audit=1)
    assert (found.computed, found.reused) == (2, 0) and len(calls) == 2
    plain = patch(loading.from_pretrained(Transformer, checkpoints[0]), pairs, kinds=["z"], audit=1)
    torch.testing.assert_close(found["all"].values.data, plain.values.data, atol=1e-4, rtol=1e-4)
    half = found["a", "half"].sweeps["z"].values.data
    torch.testing.assert_close(half, plain.sweeps["z"].values.data[..., :3], atol=1e-4, rtol=0)
    wide = across(patch, {"a": checkpoints[0], "b": checkpoints[1]}, sets, results=tmp_path, kinds=["z"], audit=1)
    assert (wide.computed, wide.reused) == (2, 2) and len(calls) == 4
    assert torch.equal(wide["a", "all"].values.data, found["all"].values.data)
    assert not torch.equal(wide["b", "all"].values.data, found["all"].values.data)
    again = across(patch, checkpoints, sets, results=tmp_path, kinds=["z"], audit=1)
    assert (again.computed, again.reused) == (0, 4) and len(calls) == 4  # labels are no part of a key
    other = across(patch, model, {"half": pairs[:3]}, results=tmp_path, kinds=["z", "attn_out"], audit=1)
    assert other.computed == 1 and set(other["half"].sweeps) == {"z", "attn_out"}
    frame = wide.to_frame()
    assert set(frame["model"]) == {"a", "b"} and len(frame) == 4 * model.cfg.n_layers * model.cfg.n_heads
    assert "a, half:" in wide.summary() and len(wide.to_json()["answers"]) == 4


def test_two_processes_write_the_same_bytes(pairs: Prompts, checkpoints: list[str], tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": 12, "steps": 2}
    here = across(circuit_for, checkpoints, pairs, results=tmp_path / "here", **options)
    there = across(circuit_for, checkpoints, pairs, results=tmp_path / "there", executor=Processes(2), **options)
    assert tree(tmp_path / "here") == tree(tmp_path / "there") and here.computed == there.computed == 2
    first = here[checkpoints[1], "prompts 0"]
    network = loading.from_pretrained(Transformer, checkpoints[1])
    assert 0 < first.circuit(network).size == first.size <= 12 and f"{first.size} of" in first.summary()
    assert not (tmp_path / "there" / ".weights").exists()


def test_more_prompts_in_parts_compute_the_new_parts(
    model: Transformer, pairs: Prompts, tmp_path: Path, calls: list[str]
) -> None:
    edit = {"edits": [edits.Edit(("z", 0), edits.zero())]}
    across(sweep, model, {"induction": pairs[:4]}, results=tmp_path, rows=2, audit=0, **edit)
    found = across(sweep, model, {"induction": pairs}, results=tmp_path, rows=2, audit=0, **edit)
    assert (found.computed, found.reused) == (1, 2) and len(calls) == 3
    assert [place[1] for place in found.answers] == ["induction 0 to 1", "induction 2 to 3", "induction 4 to 5"]


def test_reports_are_asked_question_by_question(model: Transformer, tmp_path: Path, calls: list[str]) -> None:
    each = {name: {"questions": [name]} for name in ("performance", "ablation")}
    prompts = behaviour("induction").tokens_prompts(8, model.cfg.d_vocab, 0)  # type: ignore[attr-defined]
    told: dict[str, Any] = {"behaviour": behaviour("induction"), "anyway": True}
    found = across(report.make, model, prompts, results=tmp_path, each=each, **told)
    assert found.computed == 2 and len(calls) == 2
    whole = joined(list(found.answers.values()))
    assert list(whole.findings) == ["performance", "ablation"] and "<html" in whole.html()
    plain = report.make(model, prompts, questions=["performance"], **told)
    said = [one["sentence"] for one in plain.numbers()["findings"]]
    assert [one["sentence"] for one in whole.numbers()["findings"]][: len(said)] == said


def test_a_plan_says_what_is_kept_and_what_the_rest_costs(
    model: Transformer, pairs: Prompts, checkpoints: list[str], tmp_path: Path
) -> None:
    """Answers of a kind that is measured whole cost what it took; the others are on the line through both parts."""
    twelve = behaviour("induction").tokens_prompts(12, model.cfg.d_vocab, 0)  # type: ignore[attr-defined]
    asked: dict[str, Any] = {"results": tmp_path / "out", "each": {"z": {"kinds": ["z"]}, "all": {"kinds": ["z", "attn_out"]}}}
    done: list[tuple[float, float]] = []
    said: list[str] = []
    first = many.plan(
        patch, {"mine": model, "other": checkpoints[0]}, {"six": pairs, "twelve": twelve}, **asked,
        progress=lambda *far: done.append(far), say=said.append,
    )  # fmt: skip
    assert done == [(number, 4.0) for number in (1.0, 2.0, 3.0, 4.0)]
    assert said == ["the job is small, 72 prompts; measuring it runs 104: you may as well run it, without --plan"]
    assert not (tmp_path / "out").exists() and (first.answers, first.reused, first.measured) == (8, 0, 4)
    counts = []
    for prompts in (pairs, twelve):
        for kinds in (["z"], ["z", "attn_out"]):
            with torch.enable_grad(), kernels.fixed(), planning.Operations() as counted:
                patch(model, prompts, kinds=kinds)
            counts.append(counted.count)
    measured = many.plan(patch, {"mine": model, "other": checkpoints[0]}, pairs, results=tmp_path / "out", each=asked["each"])
    assert measured.operations == 2 * sum(counts[:2])
    assert first.operations == pytest.approx(2 * sum(counts), rel=0.2) and first.seconds > 0  # prompts differ in length
    found = across(patch, {"mine": model}, {"six": pairs, "twelve": twelve}, **asked)
    kept = sum(one.stat().st_size for one in (tmp_path / "out" / job.ANSWERS).iterdir())
    assert first.bytes == pytest.approx(2 * kept, rel=0.1)
    before, both = tree(tmp_path / "out"), {"mine": model, "other": checkpoints[0]}
    rest = many.plan(patch, both, {"six": pairs, "twelve": twelve}, executor="processes:2", **asked)
    assert rest.seconds > rest.elapsed > rest.seconds / 2 - 1e-9 and "with 2" in rest.summary()
    assert (rest.answers, rest.reused, rest.workers) == (8, found.computed, 2) and tree(tmp_path / "out") == before
    assert rest.operations == pytest.approx(first.operations / 2) and "4 of which are kept" in rest.summary()
    across(patch, checkpoints[0], {"six": pairs, "twelve": twelve}, **asked)
    nothing = many.plan(patch, [model, checkpoints[0]], {"six": pairs, "twelve": twelve}, **asked)
    assert (nothing.reused, nothing.measured, nothing.operations, nothing.seconds) == (8, 0, 0, 0)


def test_a_job_is_small_where_measuring_runs_as_many_prompts() -> None:
    assert planning.small_job([[40]]) == planning.small_job([[6] * 4, [40]]) == planning.small_job([]) == ""
    assert "the job is small, 32 prompts; measuring it runs 32" in planning.small_job([[32]])


def test_operations_are_those_of_torch() -> None:
    small = network("llama")
    for grad in (False, True):
        found: list[int] = []
        for counter in (flop_counter(), planning.Operations()):
            with torch.set_grad_enabled(grad), kernels.fixed(), counter:
                logits = small(some_tokens())
                if grad:
                    logits.sum().backward()
            found.append(counter.count if isinstance(counter, planning.Operations) else counter.get_total_flops())
        assert found[0] == found[1] > 0


def test_a_plan_takes_all_prompts_where_a_few_are_not_enough(model: Transformer, pairs: Prompts, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"1 of 1 kinds of questions cannot be answered: .*prompts 0"):
        many.plan(patch, model, pairs.without_counterparts(), results=tmp_path, kinds=["z"])
    line = planning.Taken(((4, {"seconds": 3.0}), (8, {"seconds": 5.0})), 1.0)
    assert [line.at(rows, "seconds") for rows in (4, 8, 10)] == [3.0, 5.0, 6.0]
    assert planning.Taken(((6, {"seconds": 3.0}),), 1.0).at(6, "seconds") == 3.0


def test_a_damaged_answer_is_computed_again(model: Transformer, pairs: Prompts, tmp_path: Path) -> None:
    across(ablate, model, pairs, results=tmp_path, kinds=["zero"])
    before = tree(tmp_path)
    path = next((tmp_path / job.ANSWERS).iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    assert across(ablate, model, pairs, results=tmp_path, kinds=["zero"]).computed == 1 and tree(tmp_path) == before


def test_what_cannot_be_asked_is_refused(model: Transformer, pairs: Prompts, tmp_path: Path) -> None:
    def mine(model: Any, prompts: Any) -> Any:
        return None

    with pytest.raises(ConfigError, match="functions of cutaway"):
        across(mine, model, pairs, results=tmp_path)
    with pytest.raises(CheckpointError, match="is a function, which has no key"):
        across(ablate, model, pairs, results=tmp_path, metric=lambda logits: logits.mean())
    with pytest.raises(ConfigError, match="give Prompts"):
        across(ablate, model, {"text": ["some words"]}, results=tmp_path)
    with pytest.raises((UnknownModel, CheckpointError), match="no-such-model-anywhere"):
        across(ablate, "no-such-model-anywhere/x", pairs, results=tmp_path)
    with pytest.raises(ConfigError, match="at least"):
        across(ablate, [], pairs, results=tmp_path)
    with pytest.raises(WorkerFailed, match="1 of 2 questions failed three times; the other answers are kept"):
        across(patch, model, {"good": pairs, "bad": pairs.without_counterparts()}, results=tmp_path, kinds=["z"])
    assert len(list((tmp_path / job.ANSWERS).iterdir())) == 1


def test_a_hooked_transformer_is_taken_as_it_is(pairs: Prompts, tmp_path: Path) -> None:
    hooked = HookedTransformer.from_pretrained(NAME)
    found = across(ablate, {"mine": hooked}, pairs, results=tmp_path, kinds=["zero"], metric=metrics.loss(pairs.tokens))
    assert found["mine"].provenance is not None and found["mine"].provenance.to_json()["when"] == ""


def test_the_command_asks_keeps_and_refuses(tmp_path: Path, checkpoints: list[str]) -> None:
    words = ["across", "circuit", *checkpoints, "--results", str(tmp_path / "out"), "--option", "size=8", "--option", "steps=1"]
    file = tmp_path / "pairs.jsonl"
    line = {"clean": "the house of the sailor", "corrupted": "the sailor of the house", "answer": " a", "wrong": " in"}
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    runner = CliRunner()
    planned = runner.invoke(app, [*words, "--pairs", str(file), "--plan", "--json"])
    counted = json.loads(planned.stdout)
    assert (counted["answers"], counted["reused"], counted["measured"]) == (2, 0, 1) and counted["operations"] > 0
    first = runner.invoke(app, [*words, "--pairs", str(file), "--json"])
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert (found["computed"], found["reused"]) == (2, 0) and len(found["answers"]) == 2
    again = runner.invoke(app, [*words, "--pairs", str(file)])
    assert again.exit_code == 0 and "2 answers, 0 of them computed now" in again.stdout
    for more, said in (
        (["--behaviour", "nothing-like-it"], "no behaviour"),
        ([], "--behaviour NAME or --pairs FILE"),
        (["--pairs", str(file), "--option", "size"], "is not NAME=JSON"),
        (["--pairs", str(file), "--executor", "dask"], "no executor called 'dask'"),
        (["--pairs", str(file), "--out", str(tmp_path / "page")], "--out is for reports"),
    ):
        refused = runner.invoke(app, [*words, *more])
        assert refused.exit_code == 2 and said in refused.stderr and refused.stderr.count("\n") == 1, refused.output
    for model in (NAME, "no-such-model-anywhere/x"):  # before one is looked for
        asked = ["across", "patch", model, "--results", str(tmp_path), "--pairs", str(file), "--option", "kindz=1"]
        option = runner.invoke(app, asked)
        assert option.exit_code == 2 and "patch has no option kindz= (did you mean 'kinds'?)" in option.stderr
    wrong = runner.invoke(app, ["across", "pach", NAME, "--results", str(tmp_path), "--pairs", str(file)])
    assert wrong.exit_code == 2 and "did you mean 'patch'" in wrong.stderr
