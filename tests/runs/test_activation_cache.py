"""Caches: short names, and a residual stream whose parts sum to the whole at every layer of every architecture."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import MissingActivation, ShapeError, UnknownName, UnknownSite
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.slices import Slice
from cutaway.runs.activation_cache import ActivationCache

BATCH, POS = 2, 6
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "folded": {"normalization_type": "LNPre"},
    "bare": {"normalization_type": None, "positional_embedding_type": "alibi"},
    "attn-only": {"attn_only": True, "act_fn": None},
    "llama": {"normalization_type": "RMS", "gated_mlp": True, "positional_embedding_type": "rotary", "n_key_value_heads": 1},
    "neox": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary"},
    "solu": {"act_fn": "solu_ln"},
    "gemma": {"normalization_type": "RMS", "use_normalization_before_and_after": True, "use_qk_norm": True},
    "both-ln": {"use_normalization_before_and_after": True},
    "olmo2": {"normalization_type": "RMS", "post_norm_only": True, "use_qk_norm": True, "qk_norm_over": "full"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "final-rms": {"final_rms": True},
    "split": {"use_split_qkv_input": True, "use_attn_in": True, "use_attn_result": True},
    "moe": {"num_experts": 3, "experts_per_token": 2, "moe_layers": [False, True, False]},
}


def network(kind: str = "plain", **changes: Any) -> HookedTransformer:
    """A tiny network in double precision, with every weight random, those of norms and biases too."""
    fields: dict[str, Any] = {
        "n_layers": 3,
        "d_model": 12,
        "n_ctx": 8,
        "d_head": 4,
        "n_heads": 2,
        "d_vocab": 11,
        "act_fn": "gelu",
    }
    model = HookedTransformer(fields | {"device": "cpu", "dtype": "float64", "seed": 0} | KINDS[kind] | changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.requires_grad_(False)


def run(kind: str = "plain", **changes: Any) -> tuple[HookedTransformer, Tensor, ActivationCache]:
    model = network(kind, **changes)
    tokens = torch.randint(0, 11, (BATCH, POS), generator=torch.Generator().manual_seed(2))
    logits, cache = model.run_with_cache(tokens)
    assert isinstance(cache, ActivationCache)
    return model, logits, cache


@pytest.fixture(scope="module")
def plain() -> tuple[HookedTransformer, Tensor, ActivationCache]:
    return run()


def stream(cache: ActivationCache, layer: int, mid: bool = False) -> Tensor:
    """The residual stream that enters a layer, or its MLP."""
    cfg = cache.model.cfg
    if layer == cfg.n_layers:
        return cache["resid_post", layer - 1]
    return cache["resid_mid" if mid and not cfg.parallel_attn_mlp else "resid_pre", layer]


def without_bias(cache: ActivationCache, layer: int, mid: bool = False) -> Tensor:
    """What the norm at the input of a layer makes of the whole stream, less its bias."""
    model = cache.model
    module = model.ln_final if layer == model.cfg.n_layers else getattr(model.blocks[layer], "ln2" if mid else "ln1")
    normalized = module(stream(cache, layer, mid))
    bias = getattr(module, "b", None)
    return normalized if bias is None else normalized - bias


def inputs(model: HookedTransformer) -> list[tuple[int, bool]]:
    """Every place that reads the stream: (layer, whether it is the MLP)."""
    n = model.cfg.n_layers
    halves = [False] if model.cfg.attn_only else [False, True]
    return [(layer, mid) for layer in range(n) for mid in halves] + [(n, False)]


# The parts sum to the whole.


@pytest.mark.parametrize("kind", KINDS)
def test_components_sum_to_what_enters_each_layer(kind: str) -> None:
    model, _, cache = run(kind)
    for layer, mid in inputs(model):
        stack, labels = cache.decompose_resid(layer, mlp_input=mid, return_labels=True)
        assert len(stack) == len(labels) == len(set(labels))
        torch.testing.assert_close(stack.sum(0), stream(cache, layer, mid))
        whole, labels = cache.get_full_resid_decomposition(layer, mlp_input=mid, expand_neurons=False, return_labels=True)
        assert len(whole) == len(labels) == len(set(labels)) and labels[-1] == "bias"
        torch.testing.assert_close(whole.sum(0), stream(cache, layer, mid))


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_components_sum_to_the_normalised_input(kind: str) -> None:
    model, _, cache = run(kind)
    for layer, mid in inputs(model):
        expected = without_bias(cache, layer, mid)
        for stack in (
            cache.decompose_resid(layer, mlp_input=mid, apply_ln=True),
            cache.get_full_resid_decomposition(layer, mlp_input=mid, expand_neurons=False, apply_ln=True),
        ):
            torch.testing.assert_close(stack.sum(0), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("attn-only", "moe")])
def test_neurons_heads_biases_and_embeddings_sum_to_the_stream(kind: str) -> None:
    model, _, cache = run(kind)
    for layer, mid in [(1, True), (2, False), (3, False)]:
        stack, labels = cache.get_full_resid_decomposition(layer, mlp_input=mid, pos_slice=(1, 4), return_labels=True)
        heads = 2 * (layer + (mid and not model.cfg.parallel_attn_mlp))
        assert labels[heads - 1 : heads + 2] == [f"L{heads // 2 - 1}H1", "L0N0", "L0N1"]
        assert len(stack) == len(labels) == heads + 48 * layer + labels.count("embed") + labels.count("pos_embed") + 1
        torch.testing.assert_close(stack.sum(0), stream(cache, layer, mid)[:, 1:4])


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_sum_to_the_logit(kind: str) -> None:
    model, logits, cache = run(kind)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    norm_bias = getattr(model.ln_final, "b", None)
    own_bias = model.b_U if norm_bias is None else model.b_U + norm_bias @ model.W_U
    attributions = cache.logit_attrs(cache.decompose_resid(), tokens)
    expected = (logits - own_bias).gather(-1, tokens[..., None]).squeeze(-1)
    torch.testing.assert_close(attributions.sum(0), expected)


@pytest.mark.parametrize("kind", ["plain", "llama", "gemma", "both-ln", "split"])
def test_heads_are_what_attention_wrote_less_its_bias(kind: str) -> None:
    _, _, cache = run(kind)
    stack, labels = cache.stack_head_results(return_labels=True, incl_remainder=True)
    assert labels == [f"L{l}H{h}" for l in range(3) for h in range(2)] + ["remainder"]
    torch.testing.assert_close(stack.sum(0), cache["resid_post", -1])
    stream, labels = cache.get_full_resid_decomposition(0, mlp_input=True, expand_neurons=False, return_labels=True)
    bias = stream[labels.index("bias")]  # that of the first attention layer
    torch.testing.assert_close(stack[:2].sum(0) + bias, cache["attn_out", 0])


def test_the_stream_before_each_layer(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, logits, cache = plain
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "2_pre", "2_mid", "final_post"]
    sites = [(f"resid_{label[2:]}", int(label[0])) for label in labels[:-1]] + [("resid_post", 2)]
    torch.testing.assert_close(stack, torch.stack([cache[site] for site in sites]))
    lens = cache.accumulated_resid(apply_ln=True, pos_slice=-1)
    torch.testing.assert_close(model.unembed(lens[-1]), logits[:, -1])
    torch.testing.assert_close(lens[1], model.ln_final(cache["resid_pre", 1][:, -1]))  # each with a scale of its own
    _, labels = cache.accumulated_resid(1, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "1_pre", "1_mid"]
    frozen = cache.accumulated_resid(1, apply_ln=True)
    torch.testing.assert_close(frozen[-1], without_bias(cache, 1))


def test_labels_follow_the_dialect(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    _, labels = cache.decompose_resid(2, return_labels=True)
    assert labels == ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    assert cache.decompose_resid(1, mlp_input=True, return_labels=True)[1] == [*labels[:4], "1_attn_out"]
    assert cache.decompose_resid(2, mode="attn", incl_embeds=False, return_labels=True)[1] == ["0_attn_out", "1_attn_out"]
    assert cache.decompose_resid(2, mode="mlp", return_labels=True)[1] == ["embed", "pos_embed", "0_mlp_out", "1_mlp_out"]
    _, labels = cache.get_full_resid_decomposition(1, expand_neurons=False, return_labels=True)
    assert labels == ["L0H0", "L0H1", "0_mlp_out", "embed", "pos_embed", "bias"]
    _, labels = cache.stack_neuron_results(2, neuron_slice=[3, -1], return_labels=True, incl_remainder=True)
    assert labels == ["L0N3", "L0N47", "L1N3", "L1N47", "remainder"]
    _, labels = run("shortformer")[2].decompose_resid(0, return_labels=True)
    assert labels == ["embed"]


def test_before_the_first_layer_there_are_embeddings_only(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    for empty in (
        cache.stack_head_results(0),
        cache.stack_neuron_results(0),
        cache.decompose_resid(0, incl_embeds=False),
        cache.decompose_resid(0, incl_embeds=False, apply_ln=True),
    ):
        assert empty.shape == (0, BATCH, POS, 12)
    assert cache.stack_head_results(0, pos_slice=-1).shape == (0, BATCH, 12)
    torch.testing.assert_close(cache.stack_head_results(0, incl_remainder=True), cache["resid_pre", 0][None])
    whole, labels = cache.get_full_resid_decomposition(0, return_labels=True)
    assert labels == ["embed", "pos_embed", "bias"]
    assert not whole[-1].any()


# Slices.


@pytest.mark.parametrize("part", [None, -1, 2, (1, 4), [0, -1], slice(None, None, 2), Slice([1])], ids=str)
def test_slicing_positions_first_or_last_is_the_same(plain: tuple[HookedTransformer, Tensor, ActivationCache], part: Any) -> None:
    _, _, cache = plain
    index = Slice(part).slice
    for method, options in [
        (cache.decompose_resid, {}),
        (cache.accumulated_resid, {}),
        (cache.accumulated_resid, {"layer": 2}),
        (cache.stack_head_results, {"incl_remainder": True}),
        (cache.stack_neuron_results, {"layer": 2, "neuron_slice": (3,), "incl_remainder": True}),
        (cache.get_full_resid_decomposition, {}),
    ]:
        for apply_ln in (False, True):
            some, whole = method(pos_slice=part, apply_ln=apply_ln, **options), method(apply_ln=apply_ln, **options)
            torch.testing.assert_close(some, whole[:, :, index])


def test_neurons_are_chosen_by_number(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, _, cache = plain
    one = cache.get_neuron_results(1, neuron_slice=7)
    torch.testing.assert_close(one, cache["post", 1][..., 7:8] * model.blocks[1].mlp.W_out[7])
    assert cache.get_neuron_results(1, neuron_slice=[7, 8], pos_slice=-1).shape == (BATCH, 2, 12)
    torch.testing.assert_close(cache.get_neuron_results(-2, neuron_slice=[7])[..., 0, :], one)
    torch.testing.assert_close(cache.get_neuron_results(1).sum(-2) + model.blocks[1].mlp.b_out, cache["mlp_out", 1])
    torch.testing.assert_close(cache.stack_neuron_results(2, neuron_slice=7)[1], one)


def test_one_example_alone_is_that_example_of_the_batch(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    alone, kept = cache.apply_slice_to_batch_dim(1), cache.apply_slice_to_batch_dim([1])
    assert not alone.has_batch_dim and kept.has_batch_dim and cache.has_batch_dim
    for method, options in [
        (ActivationCache.decompose_resid, {"apply_ln": True}),
        (ActivationCache.stack_head_results, {"apply_ln": True, "pos_slice": 2}),
        (ActivationCache.get_full_resid_decomposition, {"layer": 1, "mlp_input": True, "apply_ln": True}),
        (ActivationCache.accumulated_resid, {"apply_ln": True}),
    ]:
        torch.testing.assert_close(method(alone, **options), method(cache, **options)[:, 1])
        torch.testing.assert_close(method(kept, **options), method(cache, **options)[:, 1:])
    assert kept.remove_batch_dim() is kept and not kept.has_batch_dim
    torch.testing.assert_close(kept["q", 0], alone["q", 0])


@pytest.mark.parametrize("part", [(1, 4), [0, 5], slice(-2, None)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "gemma"])
def test_a_cache_of_some_positions_answers_for_them(kind: str, part: Any) -> None:
    model, _, cache = run(kind)
    tokens = torch.randint(0, 11, (BATCH, POS), generator=torch.Generator().manual_seed(2))
    _, some = model.run_with_cache(tokens, pos_slice=part)
    index = Slice(part).slice
    for question in (
        lambda cache: cache.decompose_resid(apply_ln=True),
        lambda cache: cache.stack_head_results(2, apply_ln=True, incl_remainder=True),
        lambda cache: cache.get_full_resid_decomposition(1, mlp_input=True, apply_ln=True),
        lambda cache: cache.accumulated_resid(apply_ln=True),
        lambda cache: cache.logit_attrs(cache.decompose_resid(), 3)[..., None],
    ):
        torch.testing.assert_close(question(some), question(cache)[:, :, index])


# Logits.


def test_attributions_are_products_with_the_normalised_stack(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, _, cache = plain
    stack = cache.decompose_resid()
    normalised = cache.apply_ln_to_stack(stack)
    by_example, by_position = torch.tensor([3, 5]), torch.arange(12).reshape(2, 6) % 11
    W_U = model.W_U
    for tokens, direction in [
        (4, W_U[:, 4]),
        (torch.tensor([4]), W_U[:, 4]),
        (by_example, W_U.T[by_example][:, None]),
        ([3, 5], W_U.T[by_example][:, None]),
        (by_position, W_U.T[by_position]),
    ]:
        torch.testing.assert_close(cache.logit_attrs(stack, tokens), (normalised * direction).sum(-1))
    difference = cache.logit_attrs(stack, by_example, by_example + 1)
    torch.testing.assert_close(difference, cache.logit_attrs(stack, by_example) - cache.logit_attrs(stack, by_example + 1))
    last = cache.logit_attrs(stack[:, :, -1], by_example, pos_slice=-1)
    torch.testing.assert_close(last, cache.logit_attrs(stack, by_example)[:, :, -1])
    some = cache.logit_attrs(stack[:, :, 1:3], by_position[:, 1:3], pos_slice=(1, 3))
    torch.testing.assert_close(some, cache.logit_attrs(stack, by_position)[:, :, 1:3])
    torch.testing.assert_close(cache.logit_attrs(stack, 4, batch_slice=1), cache.logit_attrs(stack, 4)[:, 1])
    torch.testing.assert_close(cache.logit_attrs(stack, 4, batch_slice=[1]), cache.logit_attrs(stack, 4)[:, 1:])
    alone = cache.logit_attrs(stack[:, 1], 4, batch_slice=1, has_batch_dim=False)
    torch.testing.assert_close(alone, cache.logit_attrs(stack, 4)[:, 1])


def test_one_token_per_example_is_not_mistaken_for_one_per_position() -> None:
    model = network()
    _, cache = model.run_with_cache(torch.randint(0, 11, (5, 5), generator=torch.Generator().manual_seed(0)))
    stack, tokens = cache.decompose_resid(), torch.arange(5)
    attributions = cache.logit_attrs(stack, tokens)
    for example in range(5):
        torch.testing.assert_close(attributions[:, example], cache.logit_attrs(stack, example)[:, example])


def test_a_stack_may_have_no_component_axis_or_two(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    final = cache["resid_post", -1][:, -1]
    torch.testing.assert_close(cache.apply_ln_to_stack(final, layer=-1, pos_slice=-1), without_bias(cache, 3)[:, -1])
    by_head = cache.stack_head_results(pos_slice=-1).unflatten(0, (3, 2))
    flat = cache.stack_head_results(pos_slice=-1, apply_ln=True)
    torch.testing.assert_close(cache.apply_ln_to_stack(by_head, pos_slice=-1).flatten(0, 1), flat)
    tokens = torch.tensor([3, 5])
    torch.testing.assert_close(
        cache.logit_attrs(by_head, tokens, pos_slice=-1).flatten(0, 1),
        cache.logit_attrs(by_head.flatten(0, 1), tokens, pos_slice=-1),
    )


def test_recomputed_norms_take_each_component_for_the_whole(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, _, cache = plain
    stack = cache.decompose_resid()
    torch.testing.assert_close(cache.apply_ln_to_stack(stack, recompute_ln=True), model.ln_final(stack))
    torch.testing.assert_close(cache.apply_ln_to_stack(stack, 1, recompute_ln=True), model.blocks[1].ln1(stack))


# What is kept and what is not.


@pytest.mark.parametrize("kind", ["plain", "gemma"])
def test_head_results_come_from_what_is_kept(kind: str) -> None:
    model, _, _ = run(kind)
    tokens = torch.randint(0, 11, (BATCH, POS), generator=torch.Generator().manual_seed(2))
    _, cache = model.run_with_cache(tokens)
    _, kept = model.run_with_cache(tokens, names_filter=[name for name in model.hook_dict if "hook_z" not in name])
    assert ("result", 0) in kept and ("result", 0) not in cache and ("z", 0) not in kept
    torch.testing.assert_close(kept.stack_head_results(apply_ln=True), cache.stack_head_results(apply_ln=True))
    assert ("result", 0) in cache  # as the dialect leaves it behind
    torch.testing.assert_close(cache["result", 1], kept["result", 1])
    kept.compute_head_results()


def test_keys_are_full_short_or_tuples(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    for key, name in {
        "blocks.1.attn.hook_q": "blocks.1.attn.hook_q",
        ("pattern", 0): "blocks.0.attn.hook_pattern",
        ("pattern", -1, "attn"): "blocks.2.attn.hook_pattern",
        "q2": "blocks.2.attn.hook_q",
        ("scale", 0, "ln1"): "blocks.0.ln1.hook_scale",
        "scale": "ln_final.hook_scale",
        "embed": "hook_embed",
        ("resid_post", -3): "blocks.0.hook_resid_post",
    }.items():
        assert cache[key] is cache.cache_dict[name] and key in cache
    assert list(cache) == list(cache.keys()) == list(cache.cache_dict)
    assert len(cache) == len(list(cache.items())) == len(list(cache.values()))
    assert repr(cache).startswith("ActivationCache with keys ['hook_embed', 'hook_pos_embed', 'blocks.0.hook_resid_pre'")
    assert cache.has_embed and cache.has_pos_embed
    torch.testing.assert_close(cache.stack_activation("pattern"), torch.stack([cache["pattern", l] for l in range(3)]))
    assert cache.stack_activation("scale", 2, "ln2").shape == (2, BATCH, POS, 1)


@pytest.mark.parametrize("pos_slice", [None, -1, (1, 3)])
def test_results_of_a_layer_can_be_read_once_heads_were_stacked(pos_slice: Any) -> None:
    """Of any layer, whichever positions and layers were stacked, and as the run itself keeps them."""
    model, tokens = network("split"), torch.arange(BATCH * POS).view(BATCH, POS) % 11
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith(("hook_z", "hook_result")))
    results = {name: cache[name] for name in cache if name.endswith("hook_result")}
    little = ActivationCache({name: kept for name, kept in cache.items() if name not in results}, model)
    assert results and "blocks.1.attn.hook_result" not in little
    little.stack_head_results(1, pos_slice=pos_slice)
    for name, result in results.items():
        assert name in little
        torch.testing.assert_close(little[name], result)
    assert "blocks.9.attn.hook_result" not in little and "blocks.1.attn.hook_q" not in little
    torch.testing.assert_close(little["result", -1], cache["result", -1])


def test_unknown_keys_name_the_nearest_and_absent_ones_the_call_that_keeps_them(
    plain: tuple[HookedTransformer, Tensor, ActivationCache],
) -> None:
    model, _, cache = plain
    cache = ActivationCache({name: kept for name, kept in cache.items() if "result" not in name}, model)
    with pytest.raises(UnknownSite, match=r"did you mean 'blocks.0.attn.hook_pattern'"):
        cache["patern"]
    with pytest.raises(UnknownSite, match=r"'blocks.3.attn.hook_q'"):
        cache["q", 3]
    with pytest.raises(UnknownSite):
        cache["rot_q", 0]
    with pytest.raises(MissingActivation, match=r"names_filter=\['blocks.1.attn.hook_result'\]"):
        cache["result", 1]
    assert "result1" not in cache and 3 not in cache
    tokens = torch.zeros(1, 3, dtype=torch.long)
    _, little = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z")
    with pytest.raises(MissingActivation, match=r"stack_head_results needs 'blocks.1.attn.hook_z', 'blocks.2.attn.hook_z'"):
        little.stack_head_results()
    message = r"and 5 more.*endswith\(\('hook_embed', 'hook_pos_embed', 'hook_attn_out', 'hook_mlp_out'\)\).*incl_embeds=False"
    with pytest.raises(MissingActivation, match=message):
        little.decompose_resid()
    for question in (
        little.accumulated_resid,
        little.compute_head_results,
        little.get_full_resid_decomposition,
        lambda: little.stack_head_results(1, incl_remainder=True),
        lambda: little.stack_head_results(1, apply_ln=True),
        lambda: little.stack_neuron_results(1),
        lambda: little.get_neuron_results(0),
        lambda: little.stack_activation("pattern"),
        lambda: little.logit_attrs(torch.zeros(1, 1, 3, 12), 1),
        lambda: little.stack_head_results(0),
    ):
        with pytest.raises(MissingActivation):
            question()
    assert little.stack_head_results(1).shape == (2, 1, 3, 12)


def test_the_call_in_the_message_keeps_what_was_missing(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, _, _ = plain
    tokens = torch.zeros(1, 3, dtype=torch.long)
    _, little = model.run_with_cache(tokens, names_filter="hook_embed")
    with pytest.raises(MissingActivation) as caught:
        little.get_full_resid_decomposition()
    call = str(caught.value).partition("model.run_with_cache")[2]
    assert len(eval(f"model.run_with_cache{call}", {"model": model, "tokens": tokens})[1]) == 7
    with pytest.raises(MissingActivation) as caught:
        little.accumulated_resid(incl_mid=True)
    call = str(caught.value).partition("model.run_with_cache")[2]
    again = eval(f"model.run_with_cache{call}", {"model": model, "tokens": tokens})[1]
    assert again.accumulated_resid(incl_mid=True).shape == (7, 1, 3, 12)


def test_what_no_network_can_answer_is_refused(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    _, _, cache = plain
    stack = cache.decompose_resid()
    with pytest.raises(ShapeError, match="must be 0 to 3"):
        cache.decompose_resid(4)
    with pytest.raises(ShapeError, match="must be 0 to 3"):
        cache.stack_head_results(-2)
    with pytest.raises(ShapeError, match="at most 2"):
        cache.decompose_resid(mlp_input=True)
    with pytest.raises(UnknownName, match="did you mean 'attn'"):
        cache.decompose_resid(mode="atn")
    with pytest.raises(ShapeError, match="at least one layer"):
        cache.stack_activation("q", 0)
    with pytest.raises(ShapeError, match="same shape"):
        cache.logit_attrs(stack, 3, torch.tensor([3, 4]))
    with pytest.raises(ShapeError, match="tokens of shape"):
        cache.logit_attrs(stack[:, :, -1], torch.tensor([3, 4, 5]), pos_slice=-1)
    with pytest.raises(ShapeError, match="kept scale"):
        cache.apply_ln_to_stack(stack[:, :, 1:3])
    with pytest.raises(ShapeError, match="kept scale"):
        cache.apply_ln_to_stack(stack[:2, 0], has_batch_dim=False)  # two components, two examples
    with pytest.raises(ShapeError, match="attention only"):
        run("attn-only")[2].stack_neuron_results(1)
    with pytest.raises(ShapeError, match="this network has none"):
        run("attn-only")[2].accumulated_resid(1, mlp_input=True)
    with pytest.raises(UnknownSite, match="resid_mid"):
        run("neox")[2].accumulated_resid(incl_mid=True)
    moe = run("moe")[2]
    assert moe.stack_neuron_results(1).shape[0] == 48
    with pytest.raises(ShapeError, match="neurons of layer 1, a mixture of experts"):
        moe.get_full_resid_decomposition()


def test_one_scale_for_heads_that_read_different_streams_is_refused() -> None:
    model = network("plain", use_attn_in=True)
    tokens = torch.zeros(1, 3, dtype=torch.long)

    def louder(x: Tensor, hook: Any) -> None:
        x[:, :, 1] *= 2

    with model.hooks(fwd_hooks=[("blocks.1.hook_attn_in", louder)]):
        _, cache = model.run_with_cache(tokens)
    assert cache.decompose_resid(0, apply_ln=True).shape == (2, 1, 3, 12)
    with pytest.raises(ShapeError, match="differs between heads"):
        cache.decompose_resid(1, apply_ln=True)


# The cache as a whole.


def test_the_batch_axis_goes_only_where_it_has_one_entry(plain: tuple[HookedTransformer, Tensor, ActivationCache]) -> None:
    model, _, cache = plain
    before = dict(cache.items())
    with pytest.raises(ShapeError, match=r"2 entries.*apply_slice_to_batch_dim"):
        cache.remove_batch_dim()
    assert all(cache[name] is tensor for name, tensor in before.items())
    _, single = model.run_with_cache(torch.zeros(1, 3, dtype=torch.long), remove_batch_dim=True)
    assert not single.has_batch_dim and single["pattern", 0].shape == (2, 3, 3)
    assert single.remove_batch_dim() is single and single["pattern", 0].shape == (2, 3, 3)
    assert single.stack_head_results(apply_ln=True).shape == (6, 3, 12)
    with pytest.raises(ShapeError, match="no batch axis"):
        single.apply_slice_to_batch_dim(0)


def test_moving_and_switching_gradients() -> None:
    model, _, cache = run()
    assert cache.to("meta") is cache
    assert {tensor.device.type for tensor in cache.values()} == {"meta"} and model.W_U.device.type == "cpu"
    cache.to("meta", move_model=True)
    assert model.W_U.device.type == "meta"
    was = torch.is_grad_enabled()
    try:
        cache.toggle_autodiff(False)
        assert not torch.is_grad_enabled()
        cache.toggle_autodiff(True)
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(was)
