"""The general report: on examples, pairs and behaviours; what it refuses; what it claims of models that learned nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.errors import ContextTooLong, PromptError, TokenError, UnknownName
from cutaway.loading import from_pretrained
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.report import reporting
from cutaway.report.questions import QUESTIONS
from cutaway.report.sentences import sentence
from cutaway.report.study import Study
from cutaway.tasks.given import Given, of_behaviour, with_pairs
from cutaway.tasks.induction import Induction
from cutaway.tasks.palindromes import Palindromes

LENGTH, WORDS = 6, 8


def prompts_of(count: int = 60, seed: int = 0) -> Prompts:
    """Sequences after which their second token is right."""
    tokens = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return Prompts.of_rows(tokens.tolist(), right=tuple({LENGTH - 1: (row[1],)} for row in tokens.tolist()))


def copier(cfg: HookedTransformerConfig | None = None) -> Transformer:
    """A model of one head, which attends from the last position to position 1 and copies."""
    size = WORDS + LENGTH
    cfg = HookedTransformerConfig(
        n_layers=1, n_heads=2, d_model=size, d_head=size, n_ctx=LENGTH, d_vocab=WORDS, attn_only=True, normalization_type=None,
        seed=None,
    )  # fmt: skip
    model = Transformer(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :WORDS] = torch.eye(WORDS)
        model.pos_embed.W_pos[:, WORDS:] = torch.eye(LENGTH)
        attn = model.blocks[0].attn
        attn.W_Q[1, WORDS + LENGTH - 1, 0] = 20
        attn.W_K[1, WORDS + 1, 0] = 20
        attn.W_V[1] = torch.eye(size)
        attn.W_O[1, :WORDS, :WORDS] = 6 * torch.eye(WORDS)
        model.unembed.W_U[:WORDS] = torch.eye(WORDS)
    return model


def made(model: Any, prompts: Prompts, **options: Any) -> reporting.Report:
    return reporting.make(model, prompts, options.pop("behaviour", Given()), **options)


@pytest.fixture(scope="module")
def planted() -> reporting.Report:
    return made(copier(), with_pairs(prompts_of()), name="the copier")


def claims(report: reporting.Report) -> dict[str, list[str]]:
    return {one.what: one.claims for found in report.findings.values() for one in found if one.claims}


def test_a_planted_copier_is_found_and_named(planted: reporting.Report):
    found = claims(planted)
    assert found["attention to the answer, from the answer"] == ["0.1"]
    assert found["what a component adds to the mean logit of right answers over the wrong ones"][0] == "0.1"
    assert found["the rise of the loss of the right answers without a component"] == ["0.1"]
    assert found["the share of the difference that the stream at a position restores"] == ["1"]
    assert found["the share of the difference that one head restores"] == ["0.1"]
    assert found["the share of the difference that a head's direct path to the logits carries"] == ["0.1"]
    assert found["the copying score of a head (how far it raises the logit of what it attends to)"] == ["0.1"]
    edges = next(one for one in planted.findings["circuit"] if one.kind == "count")
    assert {"embed → 0.1.v", "0.1 → logits"} <= set(edges.values) and "0.0 → logits" not in edges.values


def test_the_report_is_a_list_of_findings_and_a_page(planted: reporting.Report, tmp_path: Path):
    numbers = json.loads(planted.json())
    assert [one["question"] for one in numbers["findings"]] == [name for name, found in planted.findings.items() for _ in found]
    assert all(one["sentence"].endswith(".") for one in numbers["findings"])
    html, file = planted.save(tmp_path)
    assert json.loads(file.read_text(encoding="utf-8")) == numbers
    page = html.read_text(encoding="utf-8")
    assert "<h1>How the copier answers the examples</h1>" in page and all(
        QUESTIONS[name].heading in page for name in planted.findings
    )
    assert "  The share of right answers is 100.0%" in planted.text()


def test_the_same_arguments_give_the_same_numbers(planted: reporting.Report):
    assert made(copier(), with_pairs(prompts_of()), name="the copier").json() == planted.json()


def random_model(seed: int, **settings: Any) -> Transformer:
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "n_ctx": LENGTH, "d_vocab": WORDS, "d_mlp": 32, "act_fn": "relu",
        "normalization_type": "LN", "seed": None,
    }  # fmt: skip
    return Transformer(HookedTransformerConfig(**{**fields, **settings}))


@pytest.mark.parametrize("seed", range(3))
def test_of_a_random_model_nothing_is_claimed(seed: int):
    model, prompts = random_model(seed), with_pairs(replace(prompts_of(seed=seed)))
    prompts = replace(prompts, wrong=())
    with pytest.raises(PromptError, match=r"does not do this, on 60 prompts, 60 answers: its accuracy is .* \(--anyway shows"):
        made(model, prompts, name="noise")
    report = made(model, prompts, name="noise", anyway=True)
    assert claims(report) == {} and report.about["at_chance"]
    assert "nothing below is a claim" in report.html()


def test_questions_say_what_they_lack():
    report = made(copier(), prompts_of())
    reasons = {name: found[0].reason for name, found in report.findings.items() if found[0].kind == "none"}
    assert reasons["patching"] == reasons["paths"] == reasons["circuit"] == "there are no minimal pairs"
    assert reasons["norms"] == "the network has no norms"


def test_some_questions_only():
    report = made(copier(), prompts_of(), questions=["lens", "performance"])
    assert list(report.findings) == ["performance", "lens"]
    with pytest.raises(UnknownName, match=r"no question called 'lense' \(did you mean 'lens'"):
        made(copier(), prompts_of(), questions=["lense"])


def test_what_is_done_is_handed_on_after_each_question():
    seen: list[tuple[int, int]] = []
    plans: list[str] = []
    made(
        copier(), prompts_of(), questions=["performance", "lens"], say=plans.append,
        each=lambda one: seen.append((len(one.findings), len(one.left))),
    )  # fmt: skip
    assert seen == [(1, 1), (2, 0)] and plans[0].startswith("2 questions, less than a minute")


@pytest.mark.parametrize(
    ("prompts", "error", "said"),
    [
        (Prompts.of_rows([[0, 1]]), PromptError, "needs right answers"),
        (Prompts.of_rows([[0] * 7], right=({6: (1,)},)), ContextTooLong, "up to 7 tokens, and the model's context is 6"),
        (Prompts.of_rows([[0], [9]], right=({0: (1,)},) * 2), TokenError, "prompt 1 has the token 9; .* has 8"),
        (Prompts.of_rows([[0], [1]], right=({0: (1,)}, {0: (8,)})), TokenError, "prompt 1 has the answer 8 at position 0"),
    ],
)
def test_prompts_that_the_model_cannot_read(prompts: Prompts, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        made(copier(), prompts)


def test_counterparts_have_the_same_form_and_other_answers():
    rows = [[0, 1, 2], [0, 2, 2], [1, 1], [2, 0], [0, 3, 1], [4, 5], [1, 2, 3], [3, 4], [5, 5, 0], [6, 1]]
    prompts = Prompts.of_rows(rows, right=tuple({len(row) - 1: (row[1],)} for row in rows))
    paired = with_pairs(prompts)
    assert paired.corrupted is not None and torch.equal(paired.lengths, paired.corrupted.lengths)
    for mine, theirs, wrong in zip(paired.right, paired.corrupted.right, paired.wrong, strict=True):
        assert mine != theirs and wrong == theirs
    assert with_pairs(prompts[[0, 2]]).corrupted is None


def test_answers_that_are_sets_are_read_by_a_threshold():
    model = copier()
    with torch.no_grad():
        model.unembed.b_U.fill_(-1.0)
    tokens = prompts_of().tokens
    prompts = Prompts.of_rows(tokens.tolist(), right=tuple({5: (row[1],)} for row in tokens.tolist()), several=True)
    report = made(model, prompts, above=True, questions=["performance", "ablation", "attribution"])
    assert report.findings["performance"][0].values["all"].value == 1.0
    assert report.about["read_out"] == "every token with a logit above 0"


@pytest.mark.parametrize("seed", range(4))
def test_no_answer_is_dealt_to_its_own_prompt(seed: int):
    model = copier()
    tokens = torch.arange(WORDS)[:, None].expand(-1, LENGTH)  # each example has a word of its own, which the head copies
    prompts = Prompts.of_rows(tokens[:2].tolist(), right=({5: (0,)}, {5: (1,)}))
    found = made(model, prompts, seed=seed, questions=["performance", "attribution"], anyway=True).findings["attribution"][0]
    assert found.baseline is not None, found.values
    assert found.values["0.1"].value > 1 > 0 > found.baseline["0.1"].value


def test_chance_of_sets_is_the_commonest_set():
    right = ({0: (0, 1)}, {0: (0, 1)}, {0: (2,)}, {0: ()})
    prompts = Prompts.of_rows([[0], [1], [2], [3]], right=right, several=True)
    study = Study(copier(), prompts, Given(), above=True)
    assert study.chance.value == 0.5
    assert Study(copier(), prompts, Given()).chance.value == 0.5


def test_a_behaviour_needs_its_own_vocabulary_or_its_words():
    with pytest.raises(PromptError, match="palindromes has a vocabulary of its own, of 33 tokens, and this model has 8"):
        of_behaviour("palindromes", copier())
    with pytest.raises(PromptError, match="14 different tokens are needed, and the vocabulary has 8"):
        of_behaviour("induction", copier())
    with pytest.raises(PromptError, match="give the model's tokenizer"):
        of_behaviour("ioi", copier())


def test_a_bundled_model_on_a_behaviour_of_its_own_tokens():
    model = from_pretrained(Transformer, "attn-only-2l", device="cpu")
    behaviour = Induction()
    prompts = behaviour.tokens_prompts(24, 200, 0)
    report = made(model, prompts, behaviour=behaviour, questions=["performance", "attention", "patching", "paths"])
    found = claims(report)
    induction = found["attention to the token after the last earlier occurrence"]
    assert induction and all(head.startswith("1.") for head in induction)
    assert found["attention to the token before"][0].startswith("0.")
    assert found["the share of the difference that a head's direct path to the logits carries"][0] in induction


def test_sentences_of_every_question_of_a_behaviour_of_two_classes():
    """A bidirectional model without training, on everything."""
    behaviour = Palindromes()
    torch.manual_seed(1)
    model = Transformer(behaviour.config())
    report = made(model, behaviour.prompts(40), behaviour=behaviour, anyway=True, vocab=behaviour.vocabulary)
    said = [sentence(one) for found in report.findings.values() for one in found]
    assert len(report.findings) == len(QUESTIONS) and all(one.endswith(".") and "nan" not in one for one in said)


def test_where_one_answer_is_right_everywhere_what_changes_with_the_prompt_tells():
    """Token 7 is among the right ones of every prompt, so that accuracy says nothing; noise does not answer to the prompt."""
    tokens = prompts_of().tokens
    other = tokens.clone()
    other[:, 1] = (other[:, 1] + 1) % 7
    rows = [{LENGTH - 1: (row[1], 7)} for row in tokens.tolist()]
    counter = [{LENGTH - 1: (row[1],)} for row in other.tolist()]
    known: dict[str, Any] = {"right": tuple(rows), "wrong": tuple(counter), "several": True}
    prompts = Prompts.of_rows(tokens.tolist(), corrupted=Prompts.of_rows(other.tolist()), **known)
    for model, expected in ((copier(), False), (random_model(0), True)):
        study = Study(model, prompts[(tokens[:, 1] < 7).nonzero().flatten().tolist()], Given())
        assert study.chance.value == 1.0
        assert study.at_chance == (expected and study.accuracy.value <= 0.99)
        assert study.telling is not None and study.telling.above(0.5) == (not expected)
        if not expected:
            assert study.response is not None and study.response.value == 1.0


def test_any_fixed_answer_tells_half_of_the_prompts():
    """Later numbers are right: 7 always is, and a distribution that is the same for all prompts tells none from another."""
    begins = torch.arange(1, 6).repeat(8)
    rows = [[0, int(begin)] for begin in begins]
    right = tuple({1: tuple(range(int(begin) + 1, WORDS))} for begin in begins)
    wrong = tuple({1: tuple(range(int(begin)))} for begin in begins)
    prompts = Prompts.of_rows(rows, right=right, wrong=wrong, several=True)
    study = Study(copier(), prompts, Given())
    fixed = torch.randn(WORDS).expand(len(rows), -1)
    later = 5 * (torch.arange(WORDS) > begins[:, None])
    assert study.telling_of(fixed).value == 0.5 and study.telling_of(later.float()).value > 0.95  # type: ignore[union-attr]
