"""Planted mechanisms: networks compiled from programs, whose heads are known. The report names them; of noise it claims nothing.

`make fuzz` runs ten of each, `make test` the first of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cutaway import programs
from cutaway.errors import PromptError
from cutaway.model.transformer import Transformer
from cutaway.programs import Program
from cutaway.programs.compiler import compile_program
from cutaway.prompts import Prompts
from cutaway.report import reporting
from cutaway.tasks.balanced_brackets import BalancedBrackets
from cutaway.tasks.cumulative_sum import CumulativeSum
from cutaway.tasks.first_unique_char import FirstUniqueCharTask
from cutaway.tasks.given import Given, with_pairs
from cutaway.tasks.sorted_list import SortedList
from tests.report.test_reporting import claims, random_model

FEW = [pytest.param(0), *(pytest.param(n, marks=pytest.mark.fuzz) for n in range(1, 10))]
ASKED = ["performance", "attention", "attribution", "ablation", "patching", "paths", "probes"]


def inputs(program: Program, count: int = 80) -> Prompts:
    """Random inputs with the program's own answers; rows of equal length."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(0, len(program.vocabulary), (count, program.n_ctx), generator=draw)
    if program.bos is not None:
        rows = torch.randint(1, len(program.vocabulary), rows.shape, generator=draw)
        rows[:, 0] = program.bos
    given = rows.tolist()
    return Prompts.of_rows(
        given, right=tuple({at: (int(one),) for at, one in programs.predict(program, row).items()} for row in given)
    )


def reported(program: Program, behaviour: Any = None) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What is claimed of the compiled network, and which head or MLP each line of the program is."""
    compiled = compile_program(program)
    same = compiled.model.cfg.d_vocab == compiled.model.cfg.d_vocab_out
    found = reporting.make(
        compiled.model, with_pairs(inputs(program)), behaviour or Given(same), name=program.name, questions=ASKED
    )
    return claims(found), dict(compiled.places)


@pytest.mark.parametrize("n", FEW)
def test_a_previous_token_head_and_an_induction_head(n: int):
    found, places = reported(programs.find("induction", size=4 + n % 5, n_ctx=10 + n))
    assert found["attention to the token before"] == [places["before"]]
    assert found["attention to the token after the last earlier occurrence"][0] == places["followed"]
    assert found["what a component adds to the mean logit of right answers over the others"][0] == places["followed"]
    assert set(found["the rise of the loss of the right answers without a component"]) == {places["before"], places["followed"]}
    assert found["the share of the difference that a head's direct path to the logits carries"] == [places["followed"]]


@pytest.mark.parametrize("n", FEW)
def test_a_detector_of_duplicates(n: int):
    found, _ = reported(programs.find("histogram", size=4 + n % 5, n_ctx=10 + n))
    assert found["attention to earlier occurrences of the same token"] == ["0.0"]
    assert "0.0" in found["the rise of the loss of the right answers without a component"]
    assert found["the share of the difference that one head restores"] == ["0.0"]


@pytest.mark.parametrize("n", FEW)
def test_a_sorter(n: int):
    found, places = reported(programs.find("sort", size=4 + n % 3, n_ctx=8 + n % 6))
    assert found["attention to the answer, from the answer"] == [places["sorted_token"]]
    assert found["what a component adds to the mean logit of right answers over the others"][0] == places["sorted_token"]
    assert found["the share of the difference that a head's direct path to the logits carries"] == [places["sorted_token"]]


class Depth(Given):
    """Names how many brackets are open."""

    def features(self, prompts: Prompts) -> dict[str, torch.Tensor]:
        steps = (prompts.tokens == 1).long() - (prompts.tokens == 2).long()
        return {"depth": steps.cumsum(1).clamp(min=0)}


@pytest.mark.parametrize("n", FEW)
def test_the_depth_of_brackets(n: int):
    found, places = reported(programs.find("dyck_depth", n_ctx=8 + n), Depth(False))
    layer = int(places["depth"].split(".")[0])
    assert "the end" in found["the accuracy of linear probes for depth"]
    assert places["depth"] in found["the rise of the loss of the right answers without a component"]
    assert layer + 1 == compile_program(programs.find("dyck_depth", n_ctx=8 + n)).model.cfg.n_layers


NOISE: list[Callable[[], Any]] = [CumulativeSum, SortedList, BalancedBrackets, FirstUniqueCharTask]


@pytest.mark.parametrize("n", FEW)
@pytest.mark.parametrize("kind", NOISE)
def test_of_noise_nothing_is_claimed(kind: Callable[[], Any], n: int):
    behaviour = kind()
    cfg = behaviour.config()
    torch.manual_seed(n)
    model = Transformer(cfg) if cfg.n_layers == 1 else random_model(
        n, n_ctx=cfg.n_ctx, d_vocab=cfg.d_vocab, d_vocab_out=cfg.d_vocab_out, attention_dir=cfg.attention_dir
    )  # fmt: skip
    prompts = behaviour.prompts(60, seed=n)
    try:
        found = reporting.make(model, prompts, behaviour, name="noise", questions=["performance"])
    except PromptError as error:
        assert "does not do this" in str(error)
        return
    # Some random network happens to answer better than a constant: then it says how much better, and that is true.
    assert found.findings["performance"][0].values["all"].value > found.findings["performance"][0].baseline.value  # type: ignore[union-attr]
