"""Attribution: components sum to the logit for every architecture; targets of every form; groups; bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway import ActivationCache, CharTokenizer
from cutaway.analysis.attribution import added_to, attribute, attribute_all_tokens, sites
from cutaway.errors import MissingActivation, ShapeError, TokenError, UnknownName
from tests.analysis.conftest import Published
from tests.architectures import ALL, network, some_tokens


def double(name: str, **changes: Any) -> Any:
    return network(name, dtype="float64", **changes)


@pytest.mark.parametrize("name", ALL)
def test_components_sum_to_the_logit(name: str) -> None:
    model, tokens = double(name, output_logits_soft_cap=-1.0), some_tokens()
    with torch.no_grad():
        logits = model(tokens)
    found = attribute(model, tokens)
    expected = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(found.logit.data[:, :-1], expected, atol=1e-9)
    assert torch.allclose(found.values.data[..., :-1].sum(0), expected, atol=1e-9)
    assert bool(found.values.data[..., -1].isnan().all()), "the last position has no next token"
    assert not bool(found.counted[:, -1].any())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "solu", "final rms", "gpt-j"])
def test_components_sum_with_neurons(name: str) -> None:
    model, tokens = double(name), some_tokens()
    whole, split = attribute(model, tokens, targets=3), attribute(model, tokens, targets=3, neurons=[1])
    assert float(split.remainder.data.abs().max()) < 1e-9
    parts = [label for label in split.values.names("component") if label.startswith("1.mlp.")]
    assert len(parts) == model.cfg.d_mlp + 1 and parts[-1] == "1.mlp.bias" and "0.mlp" in split.values.names("component")
    assert torch.allclose(split.select(parts).data.sum(0), whole.values.sel(component="1.mlp").data, atol=1e-9)


@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS"])
@pytest.mark.parametrize("neurons", [False, True])
def test_norms_after_blocks_are_passed_with_their_biases(kind: str, neurons: bool) -> None:
    model, tokens = double("gpt2", normalization_type=kind, use_normalization_before_and_after=True), some_tokens()
    found = attribute(model, tokens, targets=2, neurons=neurons)
    with torch.no_grad():
        assert torch.allclose(found.values.data.sum(0), model(tokens)[..., 2], atol=1e-9)
    assert float(attribute_all_tokens(model, tokens).remainder.data.abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["attention only", "gpt2", "llama", "gemma", "olmo-2", "mixture"])
def test_all_tokens_agree_with_single_targets(name: str) -> None:
    model, tokens = double(name), some_tokens()
    every = attribute_all_tokens(model, tokens, examples=[2, 0], positions=[4, -1])
    assert float(every.remainder.data.abs().max()) < 1e-9
    for token in (0, 7):
        one = attribute(model, tokens, targets=token)
        for component in one.values.names("component"):
            expected = one.values.sel(component=component).data[[2, 0]][:, [4, -1]]
            got = every.values.data[every.values.names("component").index(component), ..., token]
            assert torch.allclose(got, expected, atol=1e-9), component


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_what_is_added_to_a_lead_is_the_difference_of_two_attributions(name: str) -> None:
    model, tokens = double(name), some_tokens()
    places = torch.tensor([0, 0, 1]), torch.tensor([2, 4, 1])
    weights = torch.zeros(3, model.cfg.d_vocab_out, dtype=torch.float64)
    weights[:, 3], weights[:, 5] = 1.0, -1.0
    _, cache = model.run_with_cache(tokens)
    names, added = added_to(cache, places, weights)
    found = attribute(cache, targets=3, minus=5).values
    assert names == [one for one in found.names("component") if one != "bias"]
    want = torch.stack([found.sel(component=one).data[places] for one in names])
    assert torch.allclose(added, want, atol=1e-9)


def test_components_are_what_the_peer_method_gives() -> None:
    """Per-head results through the frozen norm, dotted with the unembedding: the route that builds everything."""
    model, tokens = double("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.stack_head_results(return_labels=True, apply_ln=True)
    expected = torch.einsum("cbpm,bpm->cbp", stack[:, :, :-1], model.W_U.T[tokens[:, 1:]])
    found = attribute(cache, tokens)
    names = [label[1:].replace("H", ".") for label in labels]
    assert torch.allclose(found.select(names).data[..., :-1], expected, atol=1e-9)


def test_targets_of_every_form_agree() -> None:
    model, tokens = double("gpt2"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    one = attribute(cache, targets=5).values.data
    assert torch.equal(one, attribute(cache, targets=torch.full((3,), 5)).values.data)
    assert torch.equal(one, attribute(cache, targets=torch.full((3, 9), 5)).values.data)
    each = attribute(cache, targets=[5, 6, 7]).values.data
    assert torch.equal(each[:, 1], attribute(cache, targets=6).values.data[:, 1])
    difference = attribute(cache, targets=5, minus=6)
    assert torch.allclose(difference.values.data, one - attribute(cache, targets=6).values.data, atol=1e-10)


def test_positions_without_a_target_count_nowhere() -> None:
    model, tokens = double("attention only"), some_tokens()
    targets = tokens.clone()
    targets[:, ::2] = -1
    found = attribute(model, tokens, targets=targets)
    assert torch.equal(found.counted, targets >= 0)
    classes = found.by_class(tokens, [str(i) for i in range(13)])
    for token in tokens.unique().tolist():
        chosen = (tokens == token) & (targets >= 0)
        expected = found.values.data[:, chosen].mean(1)
        assert torch.allclose(classes.values.data[:, token], expected, equal_nan=True)
    over = found.over().values.data
    assert torch.allclose(over, found.values.data[:, targets >= 0].mean(1))


def test_a_cache_of_just_the_sites_is_enough_and_less_is_not() -> None:
    model, tokens = network("gemma"), some_tokens()
    _, cache = model.run_with_cache(tokens, names_filter=sites(model))
    assert torch.allclose(attribute(cache, tokens).values.data, attribute(model, tokens).values.data, atol=1e-5, equal_nan=True)
    lacking = ActivationCache({name: x for name, x in cache.items() if not name.endswith("hook_z")}, model)
    with pytest.raises(MissingActivation, match=r"attribute needs 'blocks.0.attn.hook_z'.*run_with_cache"):
        attribute(lacking, tokens)


def test_a_cache_without_batch_axis() -> None:
    model, tokens = network("gpt2"), some_tokens(1)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    assert torch.allclose(attribute(cache, tokens).values.data, attribute(model, tokens).values.data, atol=1e-5, equal_nan=True)


def test_an_edit_shows_as_what_is_left_over() -> None:
    model, tokens = double("gpt2"), some_tokens()
    site = "blocks.1.hook_resid_post"
    with model.hooks(fwd_hooks=[(site, lambda resid, hook: resid + torch.arange(24))]):
        _, cache = model.run_with_cache(tokens)
    assert float(attribute(cache, targets=1).remainder.data.abs().max()) > 0.1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ShapeError, "targets, or tokens"),
        ({"targets": [1, 2]}, ShapeError, "do not fit 3 examples of 9 positions"),
        ({"targets": 13}, TokenError, "token 13, but there are 13 logits"),
        ({"targets": 0.5}, ShapeError, "whole numbers"),
        ({"targets": 1, "neurons": [2]}, ShapeError, "no layer 2; there are 2"),
        ({"tokens": some_tokens(2)}, ShapeError, r"tokens are \(2, 9\)"),
    ],
)
def test_bad_targets_are_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    _, cache = network("gpt2").run_with_cache(some_tokens())
    with pytest.raises(error, match=said):
        attribute(cache, **options)


def test_neurons_of_networks_that_keep_none_are_refused() -> None:
    with pytest.raises(ShapeError, match="attention only"):
        attribute(network("attention only"), some_tokens(), neurons=True)
    with pytest.raises(ShapeError, match="mixture"):
        attribute(network("mixture"), some_tokens(), neurons=True)


def test_positions_and_components_out_of_range_are_refused() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.raises(ShapeError, match="no position 9; there are 9"):
        attribute_all_tokens(model, tokens, positions=[9])
    with pytest.raises(UnknownName, match=r"no component '5.0' in this network: it has 2 layers of 4 heads"):
        attribute_all_tokens(model, tokens, components=["5.0"])


def test_published_responsibilities(published: Published) -> None:
    """Each letter that comes again is pushed down by one head: 1.0 ac, 1.1 defj, 1.2 bghi."""
    tokens, letters = published.data.toks, published.data.vocab[:-1]
    again = torch.stack([(tokens[:, :i] == tokens[:, i : i + 1]).any(1) for i in range(20)], 1)
    found = attribute(published.cache, targets=tokens).by_class(tokens, published.data.vocab, where=again, axis="token")
    last = found.values.sel(component=["1.0", "1.1", "1.2"], token=letters)
    heads = last.data.argmin(0).tolist()
    assert {h: "".join(t for t, i in zip(letters, heads, strict=True) if i == h) for h in range(3)} == {
        0: "ac",
        1: "defj",
        2: "bghi",
    }
    correct = attribute(published.cache, targets=published.data.labels)
    expected = published.logits.gather(-1, published.data.labels[..., None])[..., 0]
    assert torch.allclose(correct.logit.data, expected, atol=1e-4)
    assert float(correct.remainder.data.abs().max()) < 1e-4
    assert correct.figure(0).view == "attribution" and "largest left over" in correct.summary()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_target(side: str) -> None:
    model = network("gpt2", d_vocab=5)
    model.set_tokenizer(CharTokenizer(list("abc?_"), bos_token="?", pad_token="_"))
    model.default_padding_side = side
    both, alone = attribute(model, ["abcabc", "ab"]), attribute(model, "ab")
    assert both.counted.sum(1).tolist() == [6, 2]
    assert torch.allclose(both.values.data[:, 1][:, both.counted[1]], alone.values.data[:, 0, :2], atol=1e-5)
    fixed = attribute(model, ["abcabc", "ab"], targets="c")
    assert fixed.counted.sum(1).tolist() == [7, 3]


def test_a_summary_says_whose_logit() -> None:
    model = network("gpt2", d_vocab=5)
    model.set_tokenizer(CharTokenizer(list("abc?_"), bos_token="?", pad_token="_"))
    for options, said in (
        ({}, "logit of the next token (logits), mean over 3 positions"),
        ({"targets": "a"}, "logit of 'a' (logits), mean over 4 positions"),
        ({"targets": 1, "minus": "a"}, "logit difference of 'b' minus 'a' (logits), mean over 4 positions"),
        ({"targets": [0, 1, 2, 0]}, "logit of each position's target (logits), mean over 4 positions"),
        ({"targets": ["c"]}, "logit of each position's target (logits), mean over 4 positions"),
        ({"targets": torch.tensor([[-1, -1, 2, -1]])}, "logit of each position's target (logits), mean over 1 position"),
    ):
        found = attribute(model, "abc", **options).summary().splitlines()
        assert found[0] == f"effect on the {said}" and "largest left over by their sum: " in found[-1]
    assert attribute(model, "").summary() == "no position has a target"
