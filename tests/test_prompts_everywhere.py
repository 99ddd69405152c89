"""Many prompts in every analysis: a set gives the mean of its rows; words and roles mean the tokens that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import cutaway
from cutaway import metrics
from cutaway.analysis.patching import PatchingResult
from cutaway.errors import PromptError, ShapeError, TokenError, UnknownRole
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.editing import run
from cutaway.runs.edits import zero

TEXTS = ["the king said to the queen", "the old man said to the", "a king and a queen"]
OTHERS = ["the queen said to the king", "the good man said to the", "a queen and a king"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return cutaway.HookedTransformer.from_pretrained("attn-only-2l", device="cpu")


@pytest.fixture(scope="module")
def prompts(model: Transformer) -> Prompts:
    known: dict[str, Any] = {"answers": " the", "wrong": [" a", " and", " of"], "roles": {"S": [" king", " man", " king"]}}
    return Prompts.of_texts(model, TEXTS, corrupted=OTHERS, allow_first_token=True, **known)


AT_S = zero().at(("z", 0), heads=1, positions="S")


def patched(model: Transformer, prompts: Prompts, kind: str, **where: Any) -> torch.Tensor:
    return cutaway.patch(model, prompts, kinds=[kind], **where).sweeps[kind].averages().data


def row(prompts: Prompts, number: int) -> Prompts:
    return prompts[[number]]


ANALYSES: dict[str, Callable[[Any, Prompts], torch.Tensor]] = {
    "attribute": lambda m, p: cutaway.attribute(m, p).over().values.data,
    "lens": lambda m, p: cutaway.lens(m, p).by_row().values.data,
    "predict": lambda m, p: cutaway.predict(m, p).values.data.nanmean()[None],
    "ablate_heads": lambda m, p: cutaway.ablate_heads(m, p, kinds=["zero"], sites=["z"]).means().values.data,
    "ablate": lambda m, p: cutaway.ablate(m, p, kinds=["zero"], components=["0.attn", "1.2"]).means().values.data,
    "patch": lambda m, p: patched(m, p, "z"),
    "patch at roles": lambda m, p: patched(m, p, "resid_pre", positions=["S", "end"]),
    "path_patch": lambda m, p: cutaway.path_patch(m, p, senders=["0.1"], receivers=["1.0.k", "logits"]).averages().data,
    "edge_attribution": lambda m, p: cutaway.edge_attribution(m, p, steps=2).each.mean(0).nan_to_num(),
    "edge_effects": lambda m, p: cutaway.edge_effects(m, p, edges=[("0.1", "logits")]).each.mean(0).nan_to_num(),
    "circuits": lambda m, p: cutaway.CircuitRunner(m, p).ablated.mean()[None],
    "sweep": lambda m, p: cutaway.sweep(m, p, AT_S, None).averages().data,
    "run": lambda m, p: run(m, p, edits=[AT_S], metric=metrics.logit_difference()).value.mean()[None],
}  # fmt: skip


@pytest.mark.parametrize("name", ANALYSES)
def test_a_set_gives_the_mean_of_its_rows(model: Transformer, prompts: Prompts, name: str) -> None:
    whole = ANALYSES[name](model, prompts)
    apart = torch.stack([ANALYSES[name](model, row(prompts, number)) for number in range(len(prompts))]).mean(0)
    assert bool(whole.abs().max() > 1e-4)
    torch.testing.assert_close(whole, apart, atol=2e-5, rtol=1e-4)


def test_words_are_the_tokens_that_they_name(model: Transformer, prompts: Prompts) -> None:
    told = cutaway.sweep(model, prompts, zero().at(("z", 1)), metrics.logit_difference(" the", [" a", " and", " of"]))
    own = cutaway.sweep(model, prompts, zero().at(("z", 1)), None)
    by_hand = metrics.logit_difference(prompts.answers, prompts.wrong_answers, prompts.place("end"))
    third = cutaway.sweep(model, prompts, zero().at(("z", 1)), by_hand)
    assert torch.equal(told.values.data, own.values.data) and torch.equal(own.values.data, third.values.data)
    with pytest.raises(TokenError, match=r"is 2 tokens, not one: .*; take the first with allow_first_token"):
        cutaway.sweep(model, prompts, zero().at(("z", 1)), metrics.log_probability(" went"))
    with pytest.raises(ShapeError, match=r"a metric is needed, such as metrics.logit_difference"):
        cutaway.sweep(model, TEXTS, zero().at(("z", 1)), None)
    with pytest.raises(PromptError, match=r"needs answers: give words, or Prompts that have answers"):
        cutaway.sweep(model, TEXTS, zero().at(("z", 1)), metrics.log_probability())


def test_a_metric_at_a_role_reads_each_rows_own_place(model: Transformer, prompts: Prompts) -> None:
    found = run(model, prompts, metric=metrics.log_probability(" the", positions="S")).value
    logits = model(prompts)
    at = prompts.place("S")
    expected = logits.log_softmax(-1)[torch.arange(3), at, model.to_single_token(" the")]
    torch.testing.assert_close(found, expected)
    with pytest.raises(UnknownRole, match=r"roles are those of Prompts"):
        run(model, TEXTS, metric=metrics.log_probability(" the", positions="S"))
    with pytest.raises(UnknownRole, match=r"no role 'T'; there are S, end"):
        run(model, prompts, edits=zero().at(("z", 0), positions="T"))
    with pytest.raises(UnknownRole, match=r"roles are those of Prompts"):
        run(model, TEXTS, edits=zero().at(("z", 0), positions="S"))


def test_positions_are_named_in_attribution_and_lens(model: Transformer, prompts: Prompts) -> None:
    found = cutaway.attribute(model, prompts, targets=" the", positions="S")
    assert found.counted.nonzero().tolist() == [[number, int(at)] for number, at in enumerate(prompts.place("S"))]
    assert cutaway.lens(model, "the king said", targets=" the", positions=[1, -1]).targets.ge(0).sum() == 2
    assert cutaway.attribute(model, ["the king said", "a"], targets=" the", positions="end").counted.sum() == 2
    with pytest.raises(ShapeError, match=r"there is no position 40: prompt 0 has"):
        cutaway.attribute(model, "the king", targets=" the", positions=40)


def test_axes_are_labelled_with_tokens_or_roles(model: Transformer, prompts: Prompts) -> None:
    one = cutaway.attribute(model, "the king said", targets=" the").figure()
    assert "king" in "".join(one.tokens + tuple(map(str, one.meta.values())))
    assert "king" in str(cutaway.lens(model, "the king said").figure().meta)
    patched: PatchingResult = cutaway.patch(model, prompts, kinds=["resid_pre"])
    assert patched.values.names("pos") == ("S", "end")  # of different lengths: roles
    pair = cutaway.patch(model, TEXTS[0], OTHERS[0], metrics.logit_difference(" the", " a"), kinds=["resid_pre"])
    assert any("→" in name for name in pair.places) and "layer 0 pos" in pair.summary()
    assert set(pair.to_frame().columns) == {"kind", "layer", "pos", "token", "value", "low", "high"}


def test_roles_are_found_in_texts(model: Transformer) -> None:
    made = Prompts.of_texts(model, ["the king saw the king", "a king"], roles={"K": " king", "first": 1})
    for number, text in enumerate(made.texts):
        at = int(made.place("K")[number])
        assert model.to_string(made.tokens[number, : at + 1]).endswith(text[: text.rfind(" king") + 5])
    assert made.place("first").tolist() == [1, 1]
    with pytest.raises(PromptError, match=r"has no ' queen', which the role 'Q' names"):
        Prompts.of_texts(model, ["the king"], roles={"Q": " queen"})


def test_generation_goes_on_after_each_prompts_own_end(model: Transformer, prompts: Prompts) -> None:
    together = model.generate(prompts, 3, do_sample=False, stop_at_eos=False, verbose=False, return_type="tokens")
    for number, length in enumerate(prompts.lengths.tolist()):
        alone = model.generate(prompts.tokens[number : number + 1, :length], 3, do_sample=False, stop_at_eos=False, verbose=False)
        assert torch.equal(together[number, -3:], alone[0, -3:])


def test_steering_takes_prompts(model: Transformer, prompts: Prompts) -> None:
    made = cutaway.contrast_vectors(model, prompts, layers=[1], position="S")[1]
    assert made.positive == tuple(TEXTS) and made.norm > 0
    found = cutaway.dose_response(model, made, prompts, None, [0.0, 1.0], random=1, shuffled=1)
    torch.testing.assert_close(found.values.data[0, 0].double(), found.clean.data.double(), atol=1e-5, rtol=1e-5)
