"""Explanations: compiled programs come back, wrong stories do not pass, batches mean what the interpreter says."""

from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cutaway import HookedTransformer, programs
from cutaway.cli import app
from cutaway.errors import ExplainError
from cutaway.explain import determining, explain, numbers, save, summary
from cutaway.explain.batched import Batch
from cutaway.explain.determining import determine
from cutaway.explain.explaining import Explanation
from cutaway.explain.fitting import fit, program_of, tree_answers
from cutaway.explain.mechanisms import Proposal
from cutaway.explain.nodes import Selected, ordered
from cutaway.explain.subject import Subject
from cutaway.explain.substitution import Exchange, Scrubbed, localise, scrub
from cutaway.explain.tree import Leaf
from cutaway.explain.verdict import EXPLAINED, NOT, PARTLY, Score, agreement, judge
from cutaway.model.transformer import Transformer
from cutaway.programs.compiler import compile_program
from cutaway.programs.interpreter import run
from cutaway.prompts import Prompts
from cutaway.tasks.behaviours import behaviour
from cutaway.tasks.first_unique_dataset import FirstUniqueChar
from cutaway.tasks.palindromes import Palindromes
from cutaway.tasks.sorted_list import SortedList

PARSED = [name for name in programs.names() if name != "soft_vote"]


def inputs(program: Any, count: int, seed: int = 0, length: int | None = None) -> list[list[int]]:
    """Random inputs of a program; the first token is its BOS, where it has one."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, program.n_ctx + 1, (count,), generator=draw).tolist()
    rows = []
    for n in lengths:
        row = torch.randint(0, len(program.vocabulary), (length or n,), generator=draw).tolist()
        rows.append(row if program.bos is None else [program.bos, *(t for t in row[1:])])
    return rows


def prompts_of(program: Any, rows: list[list[int]]) -> Prompts:
    """Inputs with the program's own answers."""
    right = []
    for row in rows:
        said = programs.predict(program, row)
        right.append({at: tuple(t) if isinstance(t, list | tuple | set) else (t,) for at, t in said.items()})
    return Prompts.of_rows(rows, right=tuple(right), several=program.read_out.kind == "above")


@pytest.mark.parametrize("name", programs.names())
def test_lines_on_batches_mean_what_the_interpreter_says(name: str):
    program = programs.find(name)
    rows = inputs(program, 12)
    prompts = Prompts.of_rows(rows)
    batch = Batch(prompts.tokens, prompts.mask, n_ctx=program.n_ctx, d_vocab=len(program.vocabulary), causal=program.causal)
    batch.add(program.lines, program.kinds)
    for number, row in enumerate(rows):
        alone = run(program, row).values
        for line in program.lines:
            mine = batch.values[line.name][number, : len(row)].double()
            assert torch.allclose(
                mine.reshape(len(row), -1), torch.tensor(alone[line.name]).double().reshape(len(row), -1), atol=1e-9
            )


def explained(name: str, count: int = 240, **sizes: int) -> tuple[Any, Explanation]:
    program = programs.find(name, **sizes)
    model = compile_program(program).model
    rows = inputs(program, count)
    cut = 2 * count // 3
    return program, explain(model, prompts_of(program, rows[:cut]), prompts_of(program, rows[cut:]), name=name)


@pytest.mark.parametrize("name", ["previous_token", "maximum"])
def test_a_compiled_program_comes_back(name: str):
    program, found = explained(name)
    assert found.verdict.verdict == EXPLAINED, summary(found)
    for row in inputs(program, 40, seed=9):
        mine, its = programs.predict(found.program, row), programs.predict(program, row)
        assert {at: mine[at] for at in its} == its


def test_another_programs_story_is_refused_by_the_model():
    """A tree fitted to one model fails every test inside another."""
    one, other = programs.find("previous_token"), programs.find("first_token")
    rows = inputs(one, 200)
    story = fit_of(one, rows)[1]
    subject = Subject(compile_program(other).model, prompts_of(other, rows))
    part = subject.answered(prompts_of(other, rows))
    exchange = Exchange(subject, part)
    graph = localise(exchange)
    assert agreement(part.answers[part.counted], tree_answers(story, part)) < 0.5
    assert scrub(story, subject, part, graph.inside, exchange).recovered() < 0.5
    right = fit(subject, part)
    assert scrub(right, subject, part, graph.inside, exchange).recovered() > 0.95


def fit_of(program: Any, rows: list[list[int]]) -> Any:
    subject = Subject(compile_program(program).model, prompts_of(program, rows))
    return subject, fit(subject, subject.answered(prompts_of(program, rows)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("task", [Palindromes(max_value=6, half_length=2), SortedList(list_len=4, max_value=9)])
def test_random_weights_are_not_explained(task: Any, seed: int):
    torch.manual_seed(seed)
    model = Transformer(task.config())
    prompts = task.prompts(160, seed=seed).without_counterparts()
    assert explain(model, prompts).verdict.verdict == NOT


def test_the_same_twice_and_files_that_run_alone(tmp_path: Path):
    program, found = explained("previous_token", 120)
    _, again = explained("previous_token", 120)
    assert numbers(found) == numbers(again)
    written = save(found, tmp_path)
    assert [path.name for path in written] == ["program.py", "explanation.json", "explanation.html"]
    spec = importlib.util.spec_from_file_location("program", written[0])
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert "torch" not in written[0].read_text() and "import" not in written[0].read_text()
    for row in inputs(program, 20, seed=5):
        assert alone.predict(row) == programs.predict(found.program, row)
    assert json.loads(written[1].read_text())["headline"] > 0.99
    page = written[2].read_text()
    assert "previous" in page and "Content-Security-Policy" in page


FULL = Score(1.0, 0.99, 1.0)


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        ({}, EXPLAINED, ""),
        ({"match": Score(0.98, 0.97, 0.99)}, PARTLY, "agree in 0.980"),
        ({"scrubbed": Score(0.97, 0.9, 0.99)}, PARTLY, r"lower end of S \(scrubbed\) is 0.900"),
        ({"graph": Score(0.3, 0.2, 0.4)}, NOT, r"lower end of C \(graph\)"),
        ({"controls": {"shuffled tables": 0.4}}, NOT, "'shuffled tables' reaches 0.40"),
        ({"bits": 60.0}, NOT, "more than 5% of the parameters' 1000"),
        ({"weakest": ("0.1", 0.4)}, PARTLY, "0.1, exchanged by itself, keeps 0.40"),
        ({"accuracy": 0.3}, NOT, "does not do its task: 30.0%"),
        ({"accuracy": 0.7}, NOT, "does not do its task: 70.0%"),
    ],
)
def test_each_test_can_refuse_a_story(given: dict[str, Any], verdict: str, reason: str):
    import re

    usual = {"match": FULL, "scrubbed": FULL, "graph": FULL, "controls": {}, "bits": 10.0, "of_bits": 1000.0, "accuracy": 1.0}
    found = judge(**{**usual, **given})
    assert found.verdict == verdict
    assert re.search(reason, "; ".join(found.reasons))
    assert bool(found.reasons) == (verdict != EXPLAINED)


def test_agreement_is_corrected_for_chance():
    many = torch.randint(0, 4, (4000,), generator=torch.Generator().manual_seed(0))
    other = torch.randint(0, 4, (4000,), generator=torch.Generator().manual_seed(1))
    assert abs(agreement(many, other)) < 0.05 and agreement(many, many) == 1
    assert agreement(torch.zeros(10, dtype=torch.long), torch.zeros(10, dtype=torch.long)) == 0  # constants tell nothing
    sets = torch.tensor([[True, False, True], [False, True, False]])
    same = torch.zeros(10, dtype=torch.long)
    assert agreement(same, same, sets) == 1 and agreement(same, same + 1, sets) < 0


def test_what_cannot_be_explained_is_said():
    task = SortedList(list_len=4, max_value=9)
    model = Transformer(task.config())
    prompts = task.prompts(30).without_counterparts()
    with pytest.raises(ExplainError, match="the examples have no answers"):
        explain(model, Prompts(prompts.tokens, prompts.mask))
    with pytest.raises(ExplainError, match="the test examples have no answers"):
        explain(model, prompts, Prompts(prompts.tokens, prompts.mask))
    with pytest.raises(ExplainError, match="5 examples are too few"):
        explain(model, prompts[:5])
    with pytest.raises(ExplainError, match="the model has 2,000 tokens, and explanations compare all pairs of at most 512"):
        explain(HookedTransformer.from_pretrained("attn-only-2l"), prompts)
    outside = Prompts(prompts.tokens, prompts.mask, right=tuple({0: (99,)} for _ in range(30)))
    with pytest.raises(ExplainError, match="the examples answer 99, and the model's answers are 0 to 10"):
        explain(model, outside)


def test_the_command_refuses_an_unknown_read_out(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"tokens": [1, 2], "answers": {"1": 3}}\n')
    done = CliRunner().invoke(
        app, ["explain", "first-unique-char", "--examples", str(file), "--out", str(tmp_path), "--read-out", "x"]
    )
    assert done.exit_code == 2 and "--read-out 'x' is not known; there are most-likely and above" in done.stderr


@pytest.mark.parametrize(("name", "verdict"), [("max_of_list_42", EXPLAINED), ("palindromes", PARTLY)])
def test_published_subjects(name: str, verdict: str, shared: Path, tmp_path: Path):
    folder = shared / "data" / "subjects" / name
    said = ["explain", str(folder), "--examples", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl")]
    done = CliRunner().invoke(app, [*said, "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == verdict


def drawn(seed: int, norm: str | None = None) -> tuple[Any, Any, Prompts]:
    """A random program, the network that it compiles to, and its inputs."""
    program = programs.draw(seed)
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 11, (500,), generator=dice).tolist()
    rows = [[0, *torch.randint(1, len(program.vocabulary), (n - 1,), generator=dice).tolist()] for n in lengths]
    return program, compile_program(program, Transformer, norm=norm).model, prompts_of(program, rows)


def equivalent(program: Any, other: Any, longest: int = 6) -> bool:
    """Whether two programs answer alike on all inputs up to a length."""
    letters = range(1, len(program.vocabulary))
    rows = ([0, *tail] for length in range(longest) for tail in itertools.product(letters, repeat=length))
    return all(programs.predict(program, row) == programs.predict(other, row) for row in rows)


def back_again(seed: int, norm: str | None = None) -> bool:
    program, model, prompts = drawn(seed, norm)
    subject = Subject(model, prompts)
    return equivalent(program, fit(subject, subject.answered(prompts)).program)


# Published: 26 of 50 at 90% of inputs. Of these, the answers alone do not determine the program: its hidden values are read.
@pytest.mark.parametrize("seed", [1, 5, 11, 13, 18, 20])
def test_a_random_program_comes_back_equal_on_every_short_input(seed: int):
    assert back_again(seed)


@pytest.mark.fuzz
@pytest.mark.parametrize("norm", [None, "LN"])
def test_random_programs_come_back(norm: str | None):
    assert sum(back_again(seed, norm) for seed in range(100)) >= 95


def test_padding_is_not_seen_by_a_network_that_looks_both_ways():
    program, model, prompts = drawn(5)
    assert not program.causal and not bool(prompts.mask.all())
    subject = Subject(model, prompts)
    alone = [subject.answered(prompts[n : n + 1]) for n in range(8)]
    together = subject.answered(prompts[:8])
    for n, one in enumerate(alone):
        width = int(prompts.lengths[n])
        assert torch.equal(one.answers[0, :width], together.answers[n, :width])


def test_levels_are_found_where_there_are_some_and_only_there():
    levels = torch.tensor([[2, 0, 1], [0, 1, 0]])
    dice = torch.Generator().manual_seed(0)
    query, keys = torch.randint(2, (400,), generator=dice), torch.randint(3, (400, 5), generator=dice)
    visible = torch.ones(400, 5, dtype=torch.bool)
    score = levels[query[:, None], keys] * 10 + torch.arange(5)
    chosen = Selected(torch.arange(400), torch.nn.functional.one_hot(score.argmax(1), 5).bool(), visible)
    found = ordered(query, keys, chosen, 2, 3, latest=True)
    assert found is not None and torch.equal(found, levels)
    assert ordered(query, keys, chosen, 2, 3, latest=False) is None
    random = Selected(torch.arange(400), torch.nn.functional.one_hot(torch.randint(5, (400,), generator=dice), 5).bool(), visible)
    assert ordered(query, keys, random, 2, 3, latest=True) is None


def test_what_determines_a_target_is_found_and_what_does_not_is_refused():
    dice = torch.Generator().manual_seed(0)
    columns = {name: torch.randint(3, (600,), generator=dice) for name in "abcd"}
    columns["number"] = torch.rand(600, generator=dice, dtype=torch.float64)
    bank = [Proposal((), 1.0, numeric=name == "number", named=name) for name in columns]
    sizes = dict.fromkeys("abcd", 3)
    target = (columns["a"] + columns["c"]) % 3 + 3 * (columns["number"] > 0.4).long()
    found = determine(target, bank, columns, sizes)
    assert found is not None and {one.name for one in found.variables} == {"a", "c", "number"}
    (edge,), gap = found.edges["number"]
    assert abs(edge - 0.4) < 0.02 and gap > 0
    assert determine(torch.randint(2, (600,), generator=dice), bank[:4], columns, sizes) is None


@pytest.mark.parametrize("dense", [0, 10**6])
def test_items_are_counted_alike_by_sorting_and_in_an_array(dense: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(determining, "DENSE", dense)
    dice = torch.Generator().manual_seed(0)
    grid, target = torch.randint(0, 4, (3, 50), generator=dice), torch.randint(0, 3, (50,), generator=dice)
    grid[2] %= 2
    for joint in (None, torch.randint(0, 5, (50,), generator=dice)):
        for column, (wrong, values) in zip(grid, determining._missed(grid, joint, target), strict=True):
            cells: dict[Any, list[int]] = {}
            others = [0] * 50 if joint is None else joint.tolist()
            for value, other, answer in zip(column.tolist(), others, target.tolist(), strict=True):
                cells.setdefault((value, other), []).append(answer)
            most = [max(map(answers.count, answers)) for answers in cells.values()]
            assert (wrong, values) == (50 - sum(most), len(cells))


def election(model: Any) -> Explanation:
    """What is found in a model of first unique characters: first instances vote for their letter, repetitions against it."""
    task = behaviour("first-unique-char")
    known, unseen = (task.prompts(count, seed).without_counterparts() for seed, count in ((0, 250), (1, 120)))
    found = explain(model, known, unseen)
    assert {"often", "repeated", "votes"} <= {line.name for line in found.program.lines}
    assert found.verdict.verdict == PARTLY, summary(found)  # layer 0 holds more than who is a repetition
    assert found.verdict.match.value > 0.99 and found.verdict.scrubbed.value > 0.9 and found.verdict.graph.value > 0.99
    held = numbers(found)["claims"]
    assert {"often": ["0.0", "0.1", "0.2"], "votes": ["1.0", "1.1", "1.2"]}.items() <= {
        one["variable"]: [node for node in one["nodes"] if one["variable"] == "votes" or node.startswith("0")] for one in held
    }.items()
    assert list(found.parts.exceptional[0].effects) == [1] and found.parts.exceptional[0].layer == 0
    return found


def test_the_bundled_model_of_first_unique_characters_is_an_election():
    model = HookedTransformer.from_pretrained("first-unique-char", center_unembed=False)
    found = election(model)
    said = "\n".join(found.parts.sentences())
    for kind in ("duplicate detectors", "anti-duplicate detectors", "responsible heads"):
        assert f"{kind}, by weights: " in said and said in summary(found).replace("\n  ", "\n")
    letters = {token for tokens in found.parts.responsible.values() for token in tokens}
    assert letters >= set("abcdefghij") and "position 1 (" in said


@pytest.mark.fuzz
def test_the_published_model_of_first_unique_characters_is_an_election(shared: Path):
    weights = torch.load(shared / "data/checkpoints/first_unique_char_model.pt", map_location="cpu", weights_only=True)
    model = HookedTransformer(FirstUniqueChar.config(seed=None))
    model.load_state_dict(weights, strict=False)
    found = election(model)
    assert set(found.alone) == {(layer, head) for layer in range(2) for head in range(3)}
    detected = {head: {letter for letter in found.parts.duplicate[head] if letter != "?"} for head in found.parts.duplicate}
    assert detected["0.1"] >= set("bcdefghij") and "0.0" in found.parts.exceptional[0].nodes


def test_a_variable_of_more_tokens_than_answers_answers_as_the_program_does():
    """Of inputs with four tokens and answers with two, a copied token can be no answer: program and tree say the same there."""
    program = programs.draw(302, lines=3)
    assert len(program.vocabulary) > len(program.answers)
    rows = [row for row in inputs(program, 60) if len(row) > 1]
    subject = Subject(compile_program(program).model, prompts_of(program, rows))
    part = subject.answered(prompts_of(program, rows))
    found = fit(subject, part)
    copied = next(one for one in found.proposals if one.name == "previous")
    tree = Leaf(variable=copied)
    story = replace(found, tree=tree, program=program_of(tree, subject, found.setting, part, "copied"))
    said = torch.zeros_like(part.answers)
    for number, row in enumerate(rows):
        for at, token in programs.predict(story.program, row).items():
            said[number, at] = token
    assert torch.equal(tree_answers(story, part), said[part.counted])


def test_an_exchange_with_itself_tells_nothing():
    """A story whose every place is a class of its own passes no test: S is 0, not 1."""
    program = programs.find("maximum")
    subject = Subject(compile_program(program).model, prompts_of(program, inputs(program, 40)))
    part = subject.answered(prompts_of(program, inputs(program, 40)))
    exchange = Exchange(subject, part)
    place = torch.arange(part.prompts.tokens.numel())
    source, tested = exchange.within(place[:, None])
    assert tested == 0 and torch.equal(source, place) and torch.equal(exchange.elsewhere(source), place)
    clean = exchange.run({})
    assert Scrubbed(clean, clean, clean, {(0, 0): 0.0}).recovered() == 0


def test_random_partners_stand_at_the_places_that_were_exchanged():
    program = programs.find("maximum")
    rows = inputs(program, 40)
    subject = Subject(compile_program(program).model, prompts_of(program, rows))
    exchange = Exchange(subject, subject.answered(prompts_of(program, rows)))
    source, tested = exchange.within(exchange.part.prompts.tokens.flatten()[:, None])
    width = exchange.part.prompts.tokens.shape[1]
    place = torch.arange(len(source))
    stays = source // width == place // width
    random = exchange.elsewhere(source)
    assert 0 < tested < 1 or not stays.any()
    assert torch.equal(random[stays], source[stays]) and bool((random[~stays] != place[~stays]).double().mean() > 0.9)
