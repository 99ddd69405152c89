"""Listeners: whose they are, how long they stay, what hooks of one point share, and that caches never change."""

from __future__ import annotations

import copy
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import HookDidNotFire, HookReturned, ShapeError
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.hook_points import HookPoint
from tests.architectures import ALL, network, some_tokens

every = pytest.mark.parametrize("name", list(ALL))
SITE = "blocks.0.attn.hook_z"


def silence(x: Tensor, hook: HookPoint) -> Tensor:
    return torch.zeros_like(x)


def nothing(x: Tensor, hook: HookPoint) -> None:
    """A hook that changes nothing."""


def attached(model: HookedTransformer) -> int:
    return sum(len(point._fwd) + len(point._bwd) for point in model.hook_points())


# Threads.


def kinds_of_runs(model: HookedTransformer, tokens: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Runs that differ, each as one tensor."""

    def for_good() -> Tensor:
        model.add_hook("blocks.1.hook_attn_out", silence)
        out = model(tokens)
        model.reset_hooks()
        return out

    def noted() -> Tensor:
        def note(x: Tensor, hook: HookPoint) -> None:
            hook.ctx["seen"] = x.clone()
            time.sleep(0)

        model.run_with_hooks(tokens.flip(1), fwd_hooks=[(SITE, note)])
        return model.hook_dict[SITE].ctx["seen"]

    def scoped() -> Tensor:
        with model.hooks([(SITE, silence)]):
            return model(tokens, return_type="loss")

    return {
        "plain": lambda: model(tokens),
        "hooked": lambda: model.run_with_hooks(tokens, fwd_hooks=[(SITE, silence)]),
        "scoped": scoped,
        "cached": lambda: model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")[1]["pattern", 1],
        "other tokens": lambda: model.run_with_cache(tokens.flip(0))[1]["resid_post", -1],
        "for good": for_good,
        "noted": noted,
        "stopped": lambda: model(tokens, stop_at_layer=1),
        "generated": lambda: model.generate(tokens, 3, do_sample=False, stop_at_eos=False, verbose=False),
    }


def test_threads_on_one_model_never_see_each_others_hooks_or_activations() -> None:
    model, tokens = network("gpt2"), some_tokens(batch=2, length=6)
    runs = kinds_of_runs(model, tokens)
    with ThreadPoolExecutor(1) as one:
        expected = {kind: one.submit(run).result() for kind, run in runs.items()}
    draw = random.Random(0)
    kinds = [draw.choice(list(runs)) for _ in range(2000)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda kind: runs[kind](), kinds))
    wrong = [kind for kind, found in zip(kinds, results, strict=True) if not torch.equal(found, expected[kind])]
    assert not wrong, f"{len(wrong)} of 2000 runs, such as {wrong[:5]}"
    assert attached(model) == 0 and model.context_level == 0


def test_what_the_main_thread_attaches_for_good_is_heard_everywhere() -> None:
    model, tokens = network("gpt2"), some_tokens()
    model.add_hook(SITE, silence)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(model, tokens).result(), model(tokens))
        model.reset_hooks()
        assert torch.equal(pool.submit(model, tokens).result(), model(tokens))


def test_what_a_thread_attached_ends_with_it() -> None:
    model, tokens = network("gpt2"), some_tokens()
    clean = model(tokens)
    thread = threading.Thread(target=lambda: model.add_hook(SITE, silence))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(model, tokens).result(), clean)
    model.add_hook(SITE, nothing)
    assert [one.function for one in model.hook_dict[SITE]._fwd] == [nothing]


# Interrupts.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt inside a finalizer
def test_an_interrupt_at_any_moment_leaves_no_hook() -> None:
    model, tokens = network("gpt2"), some_tokens(batch=1, length=3)
    clean = model(tokens)
    everywhere = [(lambda name: True, nothing)]
    with interrupting():
        for number in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.Random(number).uniform(1e-5, 4e-3))
                for _ in range(5):  # an interrupt inside a finalizer is lost, so there is an end
                    if number % 2:
                        model.run_with_cache(tokens)
                    else:
                        model.run_with_hooks(tokens, fwd_hooks=everywhere)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            assert not model.list_hooks() and model.context_level == 0, number
    assert torch.equal(model(tokens), clean)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::cutaway.errors.HookDidNotFire")
@pytest.mark.parametrize("kind", ["scope", "run_with_hooks", "run_with_cache"])
def test_an_interrupt_at_each_call_leaves_no_hook(kind: str) -> None:
    """Interrupts come as a function is called, or after one of C: each such moment of a run in turn, none left to chance."""
    model, tokens = network("gpt2"), some_tokens(batch=1, length=3)
    hooks, clean = [(SITE, silence)], model(tokens)

    def run() -> None:
        if kind == "scope":
            with model.hooks(hooks):
                model.hook_dict[SITE].fwd_hooks  # noqa: B018 — the run itself is not what is tested
        elif kind == "run_with_hooks":
            model.run_with_hooks(tokens, fwd_hooks=hooks)
        else:
            model.run_with_cache(tokens, names_filter=SITE)

    moment = came = 0
    while came == moment:
        moment += 1
        came += interrupted_at(moment, run)
        assert not model.list_hooks() and model.context_level == 0, f"{kind}, moment {moment}"
    assert moment > 20
    assert torch.equal(model(tokens), clean)


def interrupted_at(moment: int, run: Callable[[], None]) -> bool:
    """Run with an interrupt at the n-th moment in the code of hooks; whether the run came so far."""
    count = 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        if event not in ("call", "c_return") or not frame.f_code.co_filename.endswith(("hooked_root.py", "hook_points.py")):
            return
        if frame.f_code.co_name == "__del__" or (frame.f_back and frame.f_back.f_code.co_name == "__del__"):
            return  # an interrupt inside a finalizer is lost, and cannot be mended
        count += 1
        if count == moment:
            sys.setprofile(None)
            raise KeyboardInterrupt

    try:
        sys.setprofile(watch)
        run()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return count >= moment


@contextmanager
def interrupting() -> Iterator[None]:
    """An alarm is Ctrl-C."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


# Copies.


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_in_a_scope_has_none_of_its_hooks(copied: Callable[[Any], Any]) -> None:
    model, tokens = network("llama"), some_tokens()
    clean = model(tokens)
    model.add_perma_hook("hook_embed", nothing)
    with model.hooks([(SITE, silence)]):
        other = copied(model)
        assert not torch.equal(model(tokens), clean)
    assert torch.equal(other(tokens), clean) and list(other.list_hooks()) == ["hook_embed"]
    assert other.context_level == 0
    other.run_with_cache(tokens)


# One tensor for the hooks of a point.


@every
def test_hooks_of_one_point_see_one_tensor(name: str) -> None:
    model, tokens = network(name), some_tokens()
    for site in model.sites:
        if site.endswith("hook_attn_in") and model.cfg.n_key_value_heads is not None:
            continue
        seen: list[Tensor] = []
        model.run_with_hooks(tokens, fwd_hooks=[(site, lambda x, hook: seen.append(x))] * 2)  # noqa: B023
        times = len(seen) // 2
        assert times and all(seen[2 * at] is seen[2 * at + 1] for at in range(times)), site


def test_what_one_hook_keeps_is_the_node_of_the_graph_that_another_gets() -> None:
    model, tokens, kept = network("gpt2"), some_tokens(), {}
    site = "blocks.0.hook_resid_pre"

    def keep(x: Tensor, hook: HookPoint) -> None:
        kept["first"] = x

    def use(x: Tensor, hook: HookPoint) -> None:
        kept["second"] = x.sum()

    model.run_with_hooks(tokens, fwd_hooks=[(site, keep), (site, use)])
    (gradient,) = torch.autograd.grad(kept["second"], kept["first"])
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_the_hook_after_one_that_returns_sees_a_copy_of_what_it_returned() -> None:
    model, tokens = network("gpt2"), some_tokens()
    mine = torch.randn(3, 9, 24)
    before = mine.clone()

    def ruin(x: Tensor, hook: HookPoint) -> None:
        assert torch.equal(x, before)
        x.zero_()

    model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: mine), ("blocks.1.hook_resid_pre", ruin)])
    assert torch.equal(mine, before)


# Caches.


@every
def test_filling_one_entry_of_a_cache_changes_nothing_else(name: str) -> None:
    model, tokens = network(name), some_tokens()
    given, weights = tokens.clone(), {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        out, cache = model.run_with_cache(tokens, names_filter=model.sites)
    clean, result = {site: tensor.clone() for site, tensor in cache.items()}, out.clone()
    for site, tensor in cache.items():
        if 0 in tensor.stride():  # one tensor for all heads: nobody can write into it
            continue
        tensor.fill_(7)
        assert all(torch.equal(cache[other], clean[other]) for other in cache if other != site), site
        tensor.copy_(clean[site])
    assert torch.equal(tokens, given) and torch.equal(out, result)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@every
def test_what_a_cache_keeps_does_not_change_when_hooks_write_later(name: str) -> None:
    """Each hook writes when all is over into what it was given, and into what it gave back."""
    model, tokens = network(name), some_tokens()
    held: list[Tensor] = []

    def hold(x: Tensor, hook: HookPoint) -> None:
        held.append(x)

    def give_back(x: Tensor, hook: HookPoint) -> Tensor:
        held.append(x.clone())
        return held[-1]

    grouped = model.cfg.n_key_value_heads is not None
    sites = [site for site in model.sites if not (grouped and site.endswith("hook_attn_in"))]
    for hook in (hold, give_back):
        for hooks_first in (True, False):
            held.clear()
            with torch.no_grad(), model.hooks([(site, hook) for site in sites] if hooks_first else []):
                store, fwd, _ = model.get_caching_hooks(sites)
                with model.hooks([*fwd, *([] if hooks_first else [(site, hook) for site in sites])]):
                    model(tokens)
            clean = {site: tensor.clone() for site, tensor in store.items()}
            for tensor in held:
                tensor.zero_()
            for site, tensor in store.items():
                assert torch.equal(tensor, clean[site]), (site, hook.__name__, hooks_first)


def test_a_hook_that_returns_a_view_of_a_parameter_puts_no_parameter_into_the_cache() -> None:
    model, tokens = network("gpt2"), some_tokens()
    before = model.W_E.clone()
    with torch.no_grad(), model.hooks([("hook_embed", lambda x, hook: model.W_E[:9].expand(3, -1, -1))]):
        _, cache = model.run_with_cache(tokens, names_filter=["hook_embed", "blocks.0.hook_resid_pre"])
    for tensor in cache.values():
        tensor[:, :1].zero_() if 0 not in tensor.stride() else None
    assert torch.equal(model.W_E, before)


def test_a_run_returns_memory_of_its_own() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with torch.no_grad():
        out, cache = model.run_with_cache(tokens, stop_at_layer=1)
        kept = cache["resid_post", 0].clone()
        out.zero_()
        assert torch.equal(cache["resid_post", 0], kept)
        _, later = model.run_with_cache(cache["resid_post", 0], start_at_layer=1)
        later["resid_pre", 1].zero_()
        assert torch.equal(cache["resid_post", 0], kept)


def test_two_caches_of_one_run_are_apart() -> None:
    model, tokens = network("gpt2"), some_tokens()
    outer = model.add_caching_hooks(["blocks.0.hook_resid_pre"])
    with torch.no_grad():
        _, inner = model.run_with_cache(tokens)
    kept = outer["blocks.0.hook_resid_pre"].clone()
    inner["resid_pre", 0].zero_()
    assert torch.equal(outer["blocks.0.hook_resid_pre"], kept)
    model.reset_hooks()


def test_removing_the_batch_axis_needs_one_example() -> None:
    model = network("gpt2")
    with pytest.raises(ShapeError, match=r"remove_batch_dim=True needs one example.*'hook_embed' has 3"):
        model.run_with_cache(some_tokens(), remove_batch_dim=True)
    assert attached(model) == 0


# Backward hooks.


@pytest.mark.parametrize("detach", ["reset", "scope", "run", "never"])
def test_a_backward_hook_belongs_to_the_pass_that_passed_it(detach: str) -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    pair = ("blocks.0.hook_resid_mid", lambda gradient, hook: seen.append(gradient.clone()))
    if detach in ("reset", "never"):
        model.add_hook(*pair, dir="bwd")
        loss = model(tokens, return_type="loss")
        if detach == "reset":
            model.reset_hooks()
    elif detach == "scope":
        with model.hooks(bwd_hooks=[pair]):
            loss = model(tokens, return_type="loss")
    else:
        loss = model.run_with_hooks(tokens, bwd_hooks=[pair], return_type="loss")
    later = model(tokens, return_type="loss") if detach != "never" else None
    assert not seen
    loss.backward()
    assert len(seen) == 1
    if later is not None:  # this pass came when nobody listened any more
        later.backward()
        assert len(seen) == 1
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True) if detach != "never" else (None, None)
    if cache is not None:
        torch.testing.assert_close(seen[0], cache["blocks.0.hook_resid_mid_grad"])


ORDERS = {  # of what happens → whether the hooks of the pass are called
    ("attach", "forward", "detach", "backward"): True,
    ("attach", "forward", "backward", "detach"): True,
    ("forward", "attach", "backward", "detach"): False,
    ("attach", "detach", "forward", "backward"): False,
}


@every
def test_backward_hooks_at_every_site_in_every_order(name: str) -> None:
    model, tokens = network(name), some_tokens()
    _, cache = model.run_with_cache(tokens, return_type="loss", incl_bwd=True)
    gradients = {site.removesuffix("_grad"): cache[site] for site in cache if site.endswith("_grad")}
    assert len(gradients) > 10
    for order, called in ORDERS.items():
        seen: dict[str, Tensor] = {}
        steps: dict[str, Callable[[], Any]] = {
            "attach": lambda: model.add_hook(lambda site: True, lambda x, hook: seen.update({hook.name: x.clone()}), dir="bwd"),  # noqa: B023
            "detach": model.reset_hooks,
            "backward": lambda: loss.backward(),  # noqa: B023
        }
        for step in order:
            if step == "forward":
                loss = model(tokens, return_type="loss")
            else:
                steps[step]()
        assert set(seen) == (set(gradients) if called else set()), order
        for site, gradient in seen.items():
            torch.testing.assert_close(gradient, gradients[site], msg=f"{site}, {order}")


@every
def test_hooks_attached_before_and_after_setup_are_called_alike(name: str) -> None:
    model, tokens, before, after = network(name), some_tokens(), [], []
    model.add_hook(lambda site: True, lambda x, hook: before.append(hook.name))
    model.blocks[0].extra = HookPoint()
    model.setup()
    model.add_hook(lambda site: site != "blocks.0.extra", lambda x, hook: after.append(hook.name))
    model(tokens)
    assert before == after and set(before) > {"hook_embed", "blocks.1.hook_resid_post"}
    model.reset_hooks()


def test_a_point_in_the_place_of_one_with_hooks_is_warned_of() -> None:
    model, seen = network("gpt2"), []
    model.add_hook("blocks.0.hook_mlp_out", lambda x, hook: seen.append(1))
    model.blocks[0].hook_mlp_out = HookPoint()
    with pytest.warns(HookDidNotFire, match=r"another hook point stands at 'blocks\.0\.hook_mlp_out' now"):
        model.setup()
    model.setup()  # says it once
    with pytest.warns(HookDidNotFire, match="never fired"):
        model(some_tokens())
    assert not seen


def test_a_backward_hook_that_is_attached_after_the_pass_is_not_called_by_it() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    loss = model(tokens, return_type="loss")
    model.add_hook("hook_embed", lambda gradient, hook: seen.append(1), dir="bwd")
    loss.backward()
    model.reset_hooks()
    assert not seen


# Levels.


def test_a_run_takes_off_every_hook_of_its_level() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    with model.hooks([("hook_embed", nothing)]):
        model.hook_dict[SITE].add_hook(lambda x, hook: seen.append("inner"), level=model.context_level + 1)
        model.add_hook(SITE, lambda x, hook: seen.append("outer"), level=model.context_level)
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", nothing)])
        assert seen == ["inner", "outer"]
        model(tokens)
        assert seen == ["inner", "outer", "outer"]
    model(tokens)
    assert seen == ["inner", "outer", "outer"] and attached(model) == 0


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_run_ends_the_hooks_of_its_own_level_alone(level: int) -> None:
    """As TransformerLens 2.18: a run outside any scope has level 1, and `edits` that are not there open no level of their own."""
    model, tokens, seen = network("gpt2"), some_tokens(), []
    model.add_hook(SITE, lambda x, hook: seen.append(level), level=level)
    model(tokens)
    for run in (model.run_with_hooks, model.run_with_cache):
        model.add_hook("hook_embed", lambda x, hook: seen.append(model.context_level))
        run(tokens)
        model.hook_embed.remove_hooks()
        seen.append("next")
    model(tokens)
    ended = level == 1
    assert seen == [level, 1, level, "next", *([1] if ended else [1, level]), "next", *([] if ended else [level])]
    model.reset_hooks(level=3)
    assert attached(model) == (not ended)
    model.reset_hooks(level=level)
    assert attached(model) == 0


def test_the_level_can_be_set_by_hand() -> None:
    model, seen = network("gpt2"), []
    model.context_level = 2
    assert model.context_level == 2
    with model.hooks([(SITE, lambda x, hook: seen.append(model.context_level))]):
        model(some_tokens())
    assert seen == [3] and model.context_level == 2
    model.context_level = 0
    assert model.context_level == 0


# What hooks may return.


def test_a_hook_that_returns_integers_or_no_tensor_is_refused() -> None:
    model, tokens = network("gpt2"), some_tokens()
    with pytest.raises(HookReturned, match=r"'hook_embed' returned torch\.int64, where torch\.float32"):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, hook: x.long())])
    with pytest.raises(HookReturned, match="returned int, where a tensor"):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, hook: 3)])
    assert attached(model) == 0


def test_a_hook_may_change_the_shape_where_nothing_after_it_forbids_it() -> None:
    model, tokens = network("llama"), some_tokens()
    clean = model(tokens)
    out = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x[:2])])
    assert out.shape[0] == 2
    torch.testing.assert_close(out, clean[:2])
    last = model.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_normalized", lambda x, hook: x[:, -1:])])
    torch.testing.assert_close(last, clean[:, -1:])
    with pytest.raises(ShapeError, match=r"hook_attn_out.*\(2, 9, 24\).*cannot take that"):
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_attn_out", lambda x, hook: x[:2])])
    for wrong in (lambda x, hook: x[:1], lambda x, hook: x[..., :3], lambda x, hook: x[0]):  # the first would be broadcast
        with pytest.raises(ShapeError, match=r"hook_attn_out.*is needed"):
            model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_attn_out", wrong)])
