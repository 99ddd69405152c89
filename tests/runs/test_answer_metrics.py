"""Metrics of sets of answers: beside those of single answers, and beside plain loops."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import PromptError
from cutaway.prompts import Prompts
from cutaway.runs import metrics
from cutaway.runs.answer_metrics import AnswerMetric
from cutaway.runs.written import Writer, read


def prompts(several: bool = False) -> Prompts:
    right = ({1: (2, 3), 3: (0,)}, {2: (4,)}) if several else ({3: (2,)}, {2: (4,)})
    wrong = ({3: (1, 4)}, {2: (0,)}) if several else ({3: (1,)}, {2: (0,)})
    return Prompts.of_rows([[0, 1, 2, 3], [4, 3, 2]], right=right, wrong=wrong, several=several)


def logits() -> torch.Tensor:
    return torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))


def test_of_single_answers_they_are_the_metrics_that_there_were():
    given = prompts()
    lead = metrics.logit_difference(given.answers, given.wrong_answers, given.at)(logits())
    torch.testing.assert_close(AnswerMetric.of(given, "lead", 5)(logits()), lead)
    loss = -metrics.log_probability(given.answers, given.at)(logits())
    torch.testing.assert_close(AnswerMetric.of(given, "loss", 5)(logits()), loss)


def test_of_sets_they_are_those_of_plain_loops():
    given, x = prompts(several=True), logits()
    p = x.softmax(-1)
    loss = [(-(p[0, 1, 2] + p[0, 1, 3]).log() - p[0, 3, 0].log()) / 2, -p[1, 2, 4].log()]
    torch.testing.assert_close(AnswerMetric.of(given, "loss", 5)(x), torch.stack(loss))
    lead = [x[0, 3, 0] - (x[0, 3, 1].exp() + x[0, 3, 4].exp()).log(), x[1, 2, 4] - x[1, 2, 0]]
    torch.testing.assert_close(AnswerMetric.of(given, "lead", 5)(x), torch.stack(lead))
    one = -(x[1, 2, 4].sigmoid().log() + sum((-x[1, 2, n]).sigmoid().log() for n in range(4))) / 5
    torch.testing.assert_close(AnswerMetric.of(given, "decisions", 5)(x)[1], one)


def test_a_record_gives_them_back():
    metric = AnswerMetric.of(prompts(several=True), "lead", 5)
    writer = Writer()
    written = writer.write(metric)
    again = read(written, writer.tensors)
    assert torch.equal(again(logits()), metric(logits()))


@pytest.mark.parametrize(("read", "said"), [("lead", "no wrong answers"), ("losses", "did you mean 'loss'")])
def test_nothing_to_read(read: str, said: str):
    given = Prompts.of_rows([[0, 1]], right=({1: (1,)},))
    with pytest.raises(PromptError, match=said):
        AnswerMetric.of(given, read, 5)
