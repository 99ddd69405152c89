"""A run with edits is a sweep's cell is a hook by hand; places count a row's own tokens, whatever the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import ConfigError, ShapeError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.runs import edits, metrics
from cutaway.runs.editing import edited, run
from cutaway.runs.places import GENERATED, PROMPT, Places, own
from cutaway.runs.sweep import sweep
from tests.architectures import ALL, CAUSAL, network, some_tokens

MODELS = {name: network(name) for name in ALL}
TOKENS, OTHER = some_tokens(3, 9, seed=2), some_tokens(3, 9, seed=1)
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9, [0, 0, 0, 0, 1, 1, 1, 1, 1]])
DIFFERENCE = metrics.logit_difference([1, 2, 3], [4, 5, 6])
SITES = ["resid_pre", "z", "pattern", "attn_out", "mlp_out"]


def some_edits(model: HookedTransformer, site: str) -> list[edits.Edit]:
    """One edit that everything has, and one at a site."""
    _, cache = model.run_with_cache(OTHER)
    return [edits.patch(cache).at((site, 1), positions=[2, -1]), edits.scale(0.5).at(("z", 0), heads=[0, 3], examples=[0, 2])]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_a_run_with_edits_is_the_cell_of_a_sweep_is_a_hook_by_hand(name: str, padded: bool) -> None:
    model = MODELS[name]
    mask = PADDING if padded else None
    options: dict[str, Any] = {"attention_mask": PADDING} if padded else {}
    for site in SITES[: 4 if model.cfg.attn_only else 5]:
        made = some_edits(model, site)
        found = run(model, TOKENS, edits=made, metric=DIFFERENCE, mask=mask, keep=[("z", 1)])
        bounds = [one.bind(model.cfg, 3, 9) for one in made]
        hooks = [(bound.site, lambda x, hook, bound=bound: bound.applied(x)) for bound in bounds]
        with torch.no_grad():
            by_hand = model.run_with_hooks(TOKENS, fwd_hooks=hooks, **options)
            assert torch.equal(model.run_with_hooks(TOKENS, edits=made, **options), by_hand)
            logits, cache = model.run_with_cache(TOKENS, edits=made, names_filter="blocks.1.attn.hook_z", **options)
        assert torch.equal(found.logits, by_hand) and torch.equal(logits, by_hand)
        assert torch.equal(found.cache["z", 1], cache["z", 1])
        assert found.value is not None
        swept = sweep(model, TOKENS, [made], DIFFERENCE, mask=mask).values.data[0]
        assert torch.allclose(swept, found.value, atol=1e-5 * float(found.value.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "bloom", "attention only"])
def test_a_rows_own_tokens_are_found_whatever_the_padding(name: str) -> None:
    model = MODELS[name]
    change = edits.add(torch.linspace(-1, 1, 24))
    lengths = PADDING.sum(1).tolist()
    for places in (own(-1), own(0, 3), own(start=1, stop=-1), Places((0, 6), strict=False)):
        made = [change.at(("resid_pre", 1), positions=places)]
        together = run(model, TOKENS, edits=made, mask=PADDING, metric=DIFFERENCE)
        swept = sweep(model, TOKENS, made, DIFFERENCE, mask=PADDING).values.data[0]
        assert together.value is not None and torch.allclose(swept, together.value, atol=1e-4)
        for row, length in enumerate(lengths):
            alone = run(model, TOKENS[row : row + 1, -length:], edits=made).logits[0]
            assert torch.allclose(together.logits[row, -length:], alone, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("kept", [True, False])
def test_edits_hold_through_a_generation_as_in_one_run_of_its_text(name: str, kept: bool) -> None:
    model, prompt = MODELS[name], TOKENS[:, :5]
    vector = torch.linspace(-2, 2, 24)
    _, cache = model.run_with_cache(OTHER[:, :5])
    ends = {"all": own(start=0), "prompt": own(start=0, stop=5), "generated": own(start=5)}
    made: list[tuple[edits.Edit, edits.Edit]] = [
        (edits.add(vector).at(("resid_pre", 1), positions=places), edits.add(vector).at(("resid_pre", 1), positions=ends[word]))
        for word, places in {"all": None, "prompt": PROMPT, "generated": GENERATED}.items()
    ]
    first = edits.patch(cache["z", 0][:, [1, 4]]).at(("z", 0), positions=[1, 4])
    made.append((edits.patch(cache).at(("z", 0), positions=[1, -1]), first))
    made.append((edits.zero().at(("z", 1), heads=2), edits.zero().at(("z", 1), heads=2)))
    for during, whole in made:
        options: dict[str, Any] = {"use_past_kv_cache": kept, "do_sample": False, "stop_at_eos": False, "verbose": False}
        tokens = model.generate(prompt, 4, edits=[during], **options)
        logits = run(model, tokens, edits=[whole]).logits
        assert torch.equal(tokens[:, 5:], logits[:, 4:-1].argmax(-1)), during.label


def test_values_of_the_run_itself_are_those_of_a_run_without_edits() -> None:
    model = MODELS["gpt2"]
    _, cache = model.run_with_cache(TOKENS)
    broken = edits.zero().at(("z", 0))
    assert torch.allclose(run(model, TOKENS, edits=[broken, edits.freeze().at(("attn_out", 0))]).logits, model(TOKENS), atol=1e-5)
    mean = run(model, TOKENS, edits=[edits.mean().at(("z", 1))], metric=metrics.kl()).value
    expected = run(model, TOKENS, edits=[edits.mean(cache).at(("z", 1))], metric=metrics.kl()).value
    assert mean is not None and expected is not None and torch.allclose(mean, expected, atol=1e-6) and bool((mean > 0).all())
    with pytest.raises(ConfigError, match="values from the run itself"):
        model.run_with_cache(TOKENS, edits=[edits.freeze().at(("z", 0))])


def test_nothing_stays_attached_and_what_does_not_fit_is_refused() -> None:
    model = MODELS["gpt2"]
    plain = model(TOKENS)
    with edited(model, edits.zero().at(("z", 0))):
        assert not torch.equal(model(TOKENS), plain)
    assert torch.equal(model(TOKENS), plain) and not model.list_hooks()
    for given, words in (
        ([edits.zero().at(("z", 0), positions=own(9))], "row 0 has 9 tokens"),
        ([edits.zero().at(("z", 0), positions=9)], "no position 9"),
    ):
        with pytest.raises(ShapeError, match=words):
            run(model, TOKENS, edits=given)
    assert not model.list_hooks()


def test_a_function_is_an_edit_too() -> None:
    model = MODELS["gpt2"]

    def half(x: Tensor) -> Tensor:
        return x / 2

    expected = run(model, TOKENS, edits=[edits.scale(0.5).at(("resid_mid", 0))]).logits
    assert torch.allclose(run(model, TOKENS, edits=[edits.function(half).at(("resid_mid", 0))]).logits, expected, atol=1e-6)
