"""Hook points: who is given what, and that nothing stays attached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway.errors import HookDidNotFire, HookNeverFired, ShapeError, UnknownSite
from cutaway.model.hook_points import HookPoint
from cutaway.model.hooked_root import HookedRootModule
from tests.architectures import ALL, network, some_tokens

every = pytest.mark.parametrize("name", list(ALL))


def attached(model: HookedRootModule) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_points())


def nothing(tensor: Tensor, hook: HookPoint) -> None:
    """A hook that changes nothing."""


def writable(model: Any) -> list[str]:
    """Sites that may be written: `hook_attn_in` has one input per head, which grouped keys and values cannot read."""
    grouped = model.cfg.n_key_value_heads is not None
    return [site for site in model.sites if not (grouped and site.endswith("hook_attn_in"))]


# Nothing changes without a listener, and what a listener leaves flows on.


@every
def test_hooks_that_change_nothing_change_nothing(name: str) -> None:
    model, tokens = network(name), some_tokens()
    hooked = model.run_with_hooks(tokens, fwd_hooks=[(site, nothing) for site in writable(model)])
    torch.testing.assert_close(hooked, model(tokens), rtol=1e-4, atol=1e-4)


@every
@pytest.mark.parametrize("length", [1, 9, 20])
def test_a_cached_run_has_the_bits_of_a_plain_one(name: str, length: int) -> None:
    model = network(name)
    tokens = some_tokens(length=length)
    plain, (cached, cache) = model(tokens), model.run_with_cache(tokens)
    assert torch.equal(plain, cached)
    for site in ("blocks.1.attn.hook_z", "blocks.1.hook_resid_post"):
        assert torch.equal(cache[site], model.run_with_cache(tokens, names_filter=[site])[1][site])


@every
def test_every_site_that_feeds_the_logits_can_change_them(name: str) -> None:
    model, tokens = network(name), some_tokens()
    before = model(tokens)
    for site in writable(model):
        if site.endswith("expert_indices") or site == "hook_tokens":
            continue

        def edit(x: Tensor, hook: HookPoint) -> None:
            x[..., ::2] = x[..., ::2] * 0.5 + 0.3  # not along what norms and softmax ignore

        after = model.run_with_hooks(tokens, fwd_hooks=[(site, edit)])
        assert not torch.allclose(after, before, atol=1e-6), site
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0)


@every
def test_an_edit_in_place_is_a_returned_edit(name: str) -> None:
    model, tokens = network(name), some_tokens()

    def in_place(x: Tensor, hook: HookPoint) -> None:
        x[..., 0] = 0

    def returned(x: Tensor, hook: HookPoint) -> Tensor:
        x = x.clone()
        x[..., 0] = 0
        return x

    for site in ("attn.hook_z", "hook_resid_pre", "hook_q_input", "attn.hook_result", "attn.hook_v"):
        runs = [model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.{site}", edit)]) for edit in (in_place, returned)]
        assert torch.equal(*runs), site


@every
def test_what_a_hook_is_given_is_its_own(name: str) -> None:
    """Overwriting everything that passes, gradients on, leaves parameters and every activation kept before as they were."""
    model, tokens = network(name), some_tokens()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    _, clean = model.run_with_cache(tokens, names_filter=model.sites, return_cache_object=False)
    clean = {site: tensor.clone() for site, tensor in clean.items()}
    order: list[str] = []
    kept: dict[str, Tensor] = {}

    def keep_then_ruin(x: Tensor, hook: HookPoint) -> Tensor:
        assert x.is_contiguous()
        original = x.clone()
        kept[hook.name], seen = x, x
        order.append(hook.name)
        seen.zero_()
        seen += 7 if x.is_floating_point() else 0
        return original

    model.run_with_hooks(tokens, fwd_hooks=[(site, keep_then_ruin) for site in writable(model)])
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    memory = [tensor.untyped_storage().data_ptr() for tensor in kept.values()]
    assert len(set(memory)) == len(memory)
    _, after = model.run_with_cache(tokens, names_filter=model.sites, return_cache_object=False)
    for site in model.sites:
        assert torch.equal(after[site], clean[site]), site


def test_kept_activations_survive_later_edits() -> None:
    model, tokens = network("split inputs"), some_tokens()
    _, clean = model.run_with_cache(tokens)

    def ruin(x: Tensor, hook: HookPoint) -> None:
        x.fill_(3.0)

    with model.hooks([(lambda name: "resid" in name or "input" in name, ruin)]):
        _, ruined = model.run_with_cache(tokens)
    assert torch.equal(ruined["resid_pre", 0], torch.full_like(clean["resid_pre", 0], 3.0))
    assert torch.equal(ruined["embed"], clean["embed"])  # the same memory as resid_pre, were it not copied
    assert (ruined["attn_out", 1] != 3).any()


def test_a_reader_sees_what_the_hooks_before_it_left_and_not_what_later_ones_do() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), {}
    site = "blocks.0.hook_resid_pre"
    _, first, _ = model.get_caching_hooks(site, cache=seen)
    later: dict[str, Tensor] = {}
    _, second, _ = model.get_caching_hooks(site, cache=later)

    def double(x: Tensor, hook: HookPoint) -> None:
        x *= 2

    with model.hooks([*first, (site, double), *second]):
        model(tokens)
    assert torch.equal(seen[site] * 2, later[site])


def test_per_head_copies_are_one_tensor_until_somebody_writes() -> None:
    model, tokens = network("split inputs"), some_tokens()
    _, cache = model.run_with_cache(tokens)
    inputs = cache["blocks.0.hook_q_input"]
    assert inputs.stride(2) == 0 and cache["blocks.0.ln1.hook_normalized"].stride(2) == 0
    with pytest.raises(RuntimeError, match="single memory location"):
        inputs += 1

    def one_head(x: Tensor, hook: HookPoint) -> None:
        x[:, :, 1] = 0

    with model.hooks([("blocks.0.hook_k_input", one_head)]):
        _, edited = model.run_with_cache(tokens)
    assert torch.equal(edited["q", 0], cache["q", 0]) or torch.allclose(edited["q", 0], cache["q", 0], atol=1e-5)
    differs = (edited["k", 0] - cache["k", 0]).abs().amax((0, 1, 3)) > 1e-4
    assert differs.tolist() == [False, True, False, False]


def test_norms_run_once_unless_inputs_are_split() -> None:
    for name, times in (("gpt2", 1), ("split inputs", 3)):
        model, fired = network(name), []
        model.run_with_hooks(some_tokens(), fwd_hooks=[("blocks.0.ln1.hook_scale", lambda x, hook: fired.append(x.shape))])  # noqa: B023
        assert len(fired) == times


# Flags and predicates.


def test_sites_work_by_name_without_a_flag() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    gated = ["attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in"]
    model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.1.{site}", lambda x, hook: seen.append(hook.name)) for site in gated])
    assert sorted(seen) == sorted(f"blocks.1.{site}" for site in gated)
    _, cache = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_result")
    assert list(cache.keys()) == ["blocks.0.attn.hook_result"]


def test_predicates_choose_among_enabled_sites() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.raises(UnknownSite, match=r"hook_result.*flag"):
        model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_result"))
    with pytest.raises(HookNeverFired, match=r"hook_result.*flag"):
        model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_result"), nothing)])
    model.set_use_attn_result(True)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_result"))
    assert len(cache) == 2


# Hooks that cannot fire.


def test_a_hook_that_never_fires_is_an_error_in_a_run() -> None:
    model, tokens = network("gpt2"), some_tokens()
    model.blocks[1].hook_never = HookPoint()
    model.setup()
    with pytest.raises(HookNeverFired, match=r"nothing.*blocks\.1\.hook_never.*did not pass it"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_never", nothing)])
    with pytest.raises(HookNeverFired, match="none of the enabled sites"):
        model.run_with_hooks(tokens, fwd_hooks=[(lambda name: False, nothing)])
    with pytest.raises(HookNeverFired, match="did not pass it"):
        model.run_with_cache(tokens, names_filter="blocks.1.hook_never")
    with pytest.raises(UnknownSite, match="predicate of the hook nothing picks none"):
        model.add_hook(lambda name: False, nothing)
    assert attached(model) == 0


def test_a_site_that_the_caller_left_out_is_a_warning_that_says_why() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.warns(HookDidNotFire, match=r"nothing.*blocks\.1\.hook_resid_post.*layers 0 to 0"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", nothing)], stop_at_layer=1)
    resid = model(tokens, stop_at_layer=1)
    with pytest.warns(HookDidNotFire, match="started at layer 1"):
        model.run_with_hooks(resid, fwd_hooks=[("hook_embed", nothing)], start_at_layer=1)
    with pytest.warns(HookDidNotFire, match="final norm"):
        model.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_scale", nothing)], stop_at_layer=2)
    with pytest.warns(HookDidNotFire, match="layers 0 to 0"):
        model.run_with_cache(tokens, names_filter="blocks.1.hook_resid_post", stop_at_layer=1)
    assert attached(model) == 0


def test_scopes_and_hooks_for_good_warn_once() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.warns(HookDidNotFire, match="was not run"), model.hooks([("hook_embed", nothing)]):
        pass
    with pytest.warns(HookDidNotFire, match="no gradient"), model.hooks(bwd_hooks=[("hook_embed", nothing)]), torch.no_grad():
        model(tokens, return_type="loss")
    with model.hooks([("hook_embed", nothing)]):
        model.forward(tokens)  # is a run as well
    model.add_perma_hook("blocks.1.hook_resid_post", nothing)
    with pytest.warns(HookDidNotFire, match="layers 0 to 0") as warned:
        model(tokens, stop_at_layer=1)
        model(tokens, stop_at_layer=1)
    assert len(warned) == 1
    model.reset_hooks(including_permanent=True)
    assert attached(model) == 0


def test_a_predicate_needs_one_of_its_sites() -> None:
    model, fired = network("gpt2"), []
    note = (lambda name: "resid" in name, lambda x, hook: fired.append(hook.name))
    model.run_with_hooks(some_tokens(), fwd_hooks=[note], stop_at_layer=1)
    assert fired == [f"blocks.0.hook_resid_{where}" for where in ("pre", "mid", "post")]


def test_an_unknown_site_is_refused_with_near_names() -> None:
    model, tokens = network("gpt2"), some_tokens()
    for call in (
        lambda: model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_patern", nothing)]),
        lambda: model.add_hook("blocks.0.attn.hook_patern", nothing),
        lambda: model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_patern"),
        lambda: model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.0.attn.hook_patern"]),
    ):
        with pytest.raises(UnknownSite, match=r"did you mean 'blocks\.0\.attn\.hook_pattern'"):
            call()
    assert attached(model) == 0


def test_a_filter_that_picks_nothing_and_a_function_that_is_no_hook_are_refused() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.raises(UnknownSite, match="picks none"):
        model.run_with_cache(tokens, names_filter=lambda name: name.endswith("zz"))
    with pytest.raises(UnknownSite, match=r"nothing picks none"):
        model.add_hook(lambda name: False, nothing)
    with pytest.raises(TypeError, match=r"<lambda>\(x\) on 'hook_embed' must take a tensor and `hook`"):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x: x)])
    model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, **named: None)])
    assert attached(model) == 0


# Hooks are gone afterwards.


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_hooks_are_gone_after_a_failure_and_do_not_mask_it(failure: type[BaseException]) -> None:
    model = network("gpt2")

    def fail(x: Tensor, hook: HookPoint) -> None:
        raise failure("stop")

    never = ("blocks.1.hook_resid_post", nothing)  # after the failure
    for run in (
        lambda: model.run_with_hooks(some_tokens(), fwd_hooks=[("blocks.0.hook_resid_pre", fail), never]),
        lambda: _in_scope(model, fail, never),
        lambda: _cached(model, fail),
    ):
        with pytest.raises(failure, match="stop"):
            run()
        assert attached(model) == 0 and model.context_level == 0


def _in_scope(model: Any, fail: Callable[..., None], never: Any) -> None:
    with model.hooks([never]), model.hooks([("hook_embed", fail)]):
        model(some_tokens())


def _cached(model: Any, fail: Callable[..., None]) -> None:
    with model.hooks([("blocks.1.hook_resid_pre", fail)]):
        model.run_with_cache(some_tokens())


def test_a_nested_scope_takes_off_only_its_own() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    outer = ("hook_embed", lambda x, hook: seen.append("outer"))
    with model.hooks([outer]):
        with model.hooks([("hook_embed", lambda x, hook: seen.append("inner"))]):
            model(tokens)
        model(tokens)
    assert seen == ["outer", "inner", "outer"] and attached(model) == 0


def test_permanent_hooks_stay_until_told() -> None:
    model, seen = network("gpt2"), []
    model.add_perma_hook("hook_embed", lambda x, hook: seen.append(hook.name))
    model.add_hook("hook_embed", nothing)
    with model.hooks([("hook_embed", nothing)]):
        model(some_tokens())
    model.reset_hooks()
    assert attached(model) == 1 and list(model.list_hooks()) == ["hook_embed"]
    model(some_tokens())
    assert seen == ["hook_embed"] * 2
    model.reset_hooks(including_permanent=True)
    assert attached(model) == 0


def test_prepended_hooks_come_first() -> None:
    model, seen = network("gpt2"), []
    model.add_hook("hook_embed", lambda x, hook: seen.append(1))
    model.add_hook("hook_embed", lambda x, hook: seen.append(0), prepend=True)
    model(some_tokens())
    assert seen == [0, 1]


def test_contexts_are_kept_until_cleared() -> None:
    model = network("gpt2")

    def note(x: Tensor, hook: HookPoint) -> None:
        hook.ctx["norm"] = x.norm().item()

    model.run_with_hooks(some_tokens(), fwd_hooks=[("blocks.1.hook_resid_pre", note)])
    assert model.blocks[1].hook_resid_pre.ctx["norm"] > 0
    assert model.blocks[1].hook_resid_pre.layer() == 1
    model.reset_hooks()
    assert model.blocks[1].hook_resid_pre.ctx == {}
    with pytest.raises(ValueError, match="in no block"):
        model.hook_embed.layer()


def test_a_wrong_shape_is_refused() -> None:
    model = network("gpt2")
    with pytest.raises(ShapeError, match=r"hook_embed.*\(3, 9, 24\)"):
        model.run_with_hooks(some_tokens(), fwd_hooks=[("hook_embed", lambda x, hook: x[0])])


# Gradients and PyTorch's own hooks.


@every
def test_gradients_at_sites_are_those_of_autograd(name: str) -> None:
    model, tokens = network(name), some_tokens()
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    for site in ("blocks.1.hook_resid_pre", "blocks.0.attn.hook_z", "blocks.1.attn.hook_pattern"):
        leaf = cache[site].clone().requires_grad_()
        again = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(site, lambda x, hook, leaf=leaf: leaf)])
        (gradient,) = torch.autograd.grad(again, leaf)
        torch.testing.assert_close(gradient, cache[site + "_grad"], rtol=1e-3, atol=1e-6)


def test_a_backward_hook_can_change_the_gradient() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with model.hooks(bwd_hooks=[("blocks.0.hook_attn_out", lambda grad, hook: torch.zeros_like(grad))]):
        model(tokens, return_type="loss").backward()
    assert not model.blocks[0].attn.W_O.grad.any() and model.blocks[1].attn.W_O.grad.any()


def test_a_hook_of_pytorch_is_a_listener_too() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    point = model.blocks[0].attn.hook_pattern
    before = model(tokens)
    handle = point.register_forward_hook(lambda module, args, out: seen.append(out.shape) or torch.zeros_like(out))
    assert not torch.allclose(model(tokens), before)
    handle.remove()
    assert seen == [(3, 4, 9, 9)] and torch.equal(model(tokens), before)
    handle = model.blocks[0].hook_resid_pre.register_forward_hook(lambda module, args, out: out.zero_())
    _, cache = model.run_with_cache(tokens)
    handle.remove()
    assert cache["embed"].any()


def test_any_module_can_have_hook_points() -> None:
    class Squares(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.hook_in, self.hook_out = HookPoint(), HookPoint()
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            return self.hook_out(self.hook_in(x) ** 2)

    model = Squares()
    x = torch.tensor([1.0, 2.0])
    out, cache = model.run_with_cache(x)
    assert torch.equal(out, x**2) and list(cache) == ["hook_in", "hook_out"]
    assert torch.equal(model.run_with_hooks(x, fwd_hooks=[("hook_in", lambda x, hook: x + 1)]), (x + 1) ** 2)
    assert sorted(model.hook_dict) == sorted(model.mod_dict) and model.hook_in.name == "hook_in"


# Caches.


def test_positions_of_a_cache_can_be_sliced() -> None:
    model, tokens = network("llama"), some_tokens()
    _, whole = model.run_with_cache(tokens, names_filter=model.sites)
    for where, expected in ((-1, slice(-1, None)), ([2, 4], [2, 4]), ((1, 5), slice(1, 5))):
        _, part = model.run_with_cache(tokens, names_filter=model.sites, pos_slice=where)
        assert torch.equal(part["pattern", 0], whole["pattern", 0][:, :, expected])
        assert torch.equal(part["q", 1], whole["q", 1][:, expected])
        assert torch.equal(part["blocks.0.hook_q_input"], whole["blocks.0.hook_q_input"][:, expected])
        assert torch.equal(part["scale"], whole["scale"][:, expected])


def test_a_cache_can_drop_its_batch_axis_and_keeps_nothing_attached() -> None:
    model, tokens = network("gpt2"), some_tokens(batch=1)
    _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    assert cache["resid_pre", 0].shape == (9, 24) and not cache["resid_pre", 0].requires_grad
    assert attached(model) == 0
    store = model.add_caching_hooks(["hook_embed"])
    model(tokens)
    assert list(store) == ["hook_embed"]
    model.reset_hooks()
    assert attached(model) == 0


def test_an_error_in_a_hook_says_which_site_it_was_on() -> None:
    model = cutaway.HookedTransformer.from_pretrained("first-unique-char", device="cpu")

    def outside(z: torch.Tensor, hook: Any) -> torch.Tensor:
        return z[:, :, 99]

    with pytest.raises(IndexError, match=r"in a hook on 'blocks\.1\.attn\.hook_z', where \(1, 3, \d+, \d+\) passes"):
        model.run_with_hooks("ab", fwd_hooks=[("blocks.1.attn.hook_z", outside)])

    def own(z: torch.Tensor, hook: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match=r"^'mine'$"):
        model.run_with_hooks("ab", fwd_hooks=[("blocks.1.attn.hook_z", own)])


def test_a_point_says_which_functions_are_attached() -> None:
    """By direction, permanence and level, as `remove_hooks` would pick them."""
    point = HookPoint()
    assert not any(point.has_hooks(dir) for dir in ("fwd", "bwd", "both"))
    point.add_hook(lambda x, hook: None, dir="bwd", level=2)
    point.add_hook(lambda x, hook: None, is_permanent=True)
    for dir, including_permanent, level, expected in [
        ("both", True, None, True), ("fwd", True, None, True), ("fwd", False, None, False), ("bwd", False, None, True),
        ("both", False, 2, True), ("both", True, 1, False), ("fwd", True, 2, False),
    ]:  # fmt: skip
        assert point.has_hooks(dir, including_permanent, level) is expected, (dir, including_permanent, level)
    point.remove_hooks("both", level=2)
    assert point.has_hooks() and not point.has_hooks(including_permanent=False)
    with pytest.raises(ValueError, match="'sideways'"):
        point.has_hooks("sideways")
