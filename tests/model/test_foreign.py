"""Modules of others at hook points and in place of parts; hook points that are added."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.analysis import patching
from cutaway.errors import ConfigError, HookReturned, SharedHookPoint, UnknownSite
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.attention import Attention
from cutaway.model.block import TransformerBlock
from cutaway.model.foreign import ATTENTION_STEPS
from cutaway.model.hook_points import HookPoint
from cutaway.model.key_values import KeyValueCache
from cutaway.model.mlp import MLP
from cutaway.model.norm import LayerNorm
from cutaway.runs import edits, metrics
from cutaway.runs.sweep import residual, sweep
from tests.architectures import ALL, network, some_tokens

every = pytest.mark.parametrize("name", list(ALL))


class Doubling(nn.Module):
    """What a library puts at a hook point: it computes something, and has hook points of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_inside = HookPoint()
        self.size = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_inside(x * self.size) if x.is_floating_point() else self.hook_inside(x)


class Plain(nn.Module):
    """Somebody's module without hook points, which computes something (rounding apart, what it is given)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 / 2 if x.is_floating_point() else x


class Around(nn.Module):
    """A wrapper of the hook point that stood there."""

    def __init__(self, old: nn.Module):
        super().__init__()
        self.old = old

    def forward(self, x: Tensor) -> Any:
        return self.old(x)


KINDS: dict[str, tuple[Callable[[nn.Module], nn.Module], str | None]] = {  # → what stands there, and which point is inside
    "plain": (lambda old: Plain(), None),
    "with a hook point": (lambda old: Doubling(), "hook_inside"),
    "wrapper": (Around, "old"),
}


def own_sites(model: HookedTransformer) -> list[str]:
    """Sites that run: grouped queries have no input by head for all three."""
    grouped = model.cfg.n_key_value_heads is not None
    return [site for site in model.sites if not (grouped and site.endswith("hook_attn_in"))]


@contextmanager
def standing_at(model: HookedTransformer, site: str, kind: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Another module at a site, for a while."""
    parent, _, last = site.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, last)
    setattr(owner, last, kind(before))
    model.setup()
    yield
    setattr(owner, last, before)
    model.setup()


@every
def test_a_foreign_module_of_each_kind_at_every_site(name: str) -> None:
    model, tokens = network(name), some_tokens(batch=2, length=4)
    clean = model(tokens)
    for site in own_sites(model):
        for kind, (make, within) in KINDS.items():
            with standing_at(model, site, make):
                assert site not in model.hook_dict
                if within is None:
                    torch.testing.assert_close(model(tokens), clean, rtol=1e-4, atol=1e-4, msg=site)
                    continue
                inside, seen = f"{site}.{within}", dict[str, list[Tensor]](before=[], after=[], back=[])
                model.add_hook(inside, lambda x, hook: seen["before"].append(x))  # noqa: B023
                model.setup()
                model.add_hook(inside, lambda x, hook: seen["after"].append(x))  # noqa: B023
                model.add_hook(inside, lambda x, hook: seen["back"].append(x), dir="bwd")  # noqa: B023
                out, cache = model.run_with_cache(tokens, names_filter=[inside])
                model.reset_hooks()
                torch.testing.assert_close(out, clean, rtol=1e-4, atol=1e-4, msg=f"{site}, {kind}")
                assert list(cache) == [inside] and seen["before"], (site, kind)
                assert all(one is other for one, other in zip(seen["before"], seen["after"], strict=True)), (site, kind)
                assert torch.equal(cache[inside], seen["after"][-1].detach())
        assert site in model.sites and len(model.hook_dict) == len(set(model.hook_dict.values()))
    assert torch.equal(model(tokens), clean)


@every
def test_backward_hooks_inside_foreign_modules_belong_to_their_pass(name: str) -> None:
    model, tokens = network(name), some_tokens(batch=2, length=4)
    for site in own_sites(model):
        if site.endswith(("hook_tokens", "hook_expert_indices")):
            continue
        with standing_at(model, site, Around):
            inside, seen = f"{site}.old", list[Tensor]()
            model.add_hook(inside, lambda gradient, hook: seen.append(gradient), dir="bwd")  # noqa: B023
            loss = model(tokens, return_type="loss")
            model.reset_hooks()
            later = model(tokens, return_type="loss")
            loss.backward()
            times = len(seen)
            later.backward()
            assert times == len(seen) > 0, site
    model.zero_grad()


class Wrapped(nn.Module):
    """A part in a wrapper that names the dialect's arguments and knows no others."""

    def __init__(self, old: nn.Module):
        super().__init__()
        self.old, self.hook_wrapped = old, HookPoint()

    def forward(
        self,
        query_input: Tensor,
        key_input: Tensor,
        value_input: Tensor,
        past_kv_cache_entry: Any = None,
        attention_mask: Any = None,
    ) -> Tensor:
        given = {"query_input": query_input, "key_input": key_input, "value_input": value_input}
        return self.hook_wrapped(self.old(**given, past_kv_cache_entry=past_kv_cache_entry, attention_mask=attention_mask))


class WrappedMLP(nn.Module):
    def __init__(self, old: nn.Module):
        super().__init__()
        self.old, self.hook_wrapped = old, HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.hook_wrapped(self.old(x))


class WrappedBlock(nn.Module):
    def __init__(self, old: nn.Module):
        super().__init__()
        self.old = old

    def forward(
        self, resid: Tensor, past_kv_cache_entry: Any = None, shortformer_pos_embed: Any = None, attention_mask: Any = None
    ) -> Tensor:
        given = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
        return self.old(resid, shortformer_pos_embed=shortformer_pos_embed, **given)


class Cloning(Around):
    """What libraries of edges put around a hook point: it hands a copy on while nothing is patched."""

    def forward(self, x: Tensor) -> Any:
        return self.old(x.clone())


@every
def test_with_the_dialects_flags_a_small_run_has_the_same_bits_through_copies(name: str) -> None:
    flags = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "ungroup_grouped_query_attention")
    model = network(name, **dict.fromkeys(flags, True))
    tokens = some_tokens()
    plain = model(tokens)
    for block in model.blocks:
        for point in ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "attn.hook_result", "hook_mlp_out"):
            owner, last = (block.attn, "hook_result") if "." in point else (block, point)
            if hasattr(owner, last):
                setattr(owner, last, Cloning(getattr(owner, last)))
    model.setup()
    assert torch.equal(model(tokens), plain)


@every
def test_wrapped_parts_run_as_they_are(name: str) -> None:
    plain, model, tokens = network(name), network(name), some_tokens()
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    for number in (0, 1):
        block = model.blocks[number]
        block.attn = Wrapped(block.attn)
        if not model.cfg.attn_only:
            block.mlp = WrappedMLP(block.mlp)
    model.setup()
    seen: list[str] = []
    wrapped = [(lambda name: name.endswith("hook_wrapped"), lambda x, hook: seen.append(hook.name))]
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=wrapped), plain(tokens))
    assert len(seen) == (2 if model.cfg.attn_only else 4)
    torch.testing.assert_close(model(tokens, attention_mask=mask)[:, 3:], plain(tokens, attention_mask=mask)[:, 3:])
    state = model.state_dict()
    assert model.load_state_dict(state).missing_keys == []
    if model.cfg.attention_dir == "causal":
        options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False, "verbose": False}
        assert torch.equal(model.generate(tokens, 4, **options), plain.generate(tokens, 4, **options))


def test_a_wrapped_block_runs_as_it_is() -> None:
    plain, model, tokens = network("llama"), network("llama"), some_tokens()
    model.blocks[1] = WrappedBlock(model.blocks[1])
    model.setup()
    torch.testing.assert_close(model(tokens), plain(tokens))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda x: (x, x), "returned tuple"),
        (lambda x: x.double(), r"returned torch\.float64, where torch\.float32"),
        (lambda x: x.long(), r"returned torch\.int64, where torch\.float32"),
        (lambda x: x.to("meta"), "returned a tensor on meta, where cpu is needed"),
    ],
)
def test_a_foreign_module_that_returns_something_else_is_named(what: Callable[[Tensor], Any], said: str) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return what(x)

    model = network("gpt2")
    model.blocks[1].hook_mlp_out = Wrong()
    model.setup()
    with pytest.raises(HookReturned, match=rf"the Wrong at 'blocks\.1\.hook_mlp_out' {said}"):
        model(some_tokens())


def test_hook_points_may_be_added_anywhere_and_hooks_stay_on_through_setup() -> None:
    model, tokens, seen = network("gpt2"), some_tokens(), []
    model.add_hook("hook_embed", lambda x, hook: seen.append("embed"))
    model.blocks[0].extra = HookPoint()
    model.setup()
    assert list(model.hook_dict)[-1] == "blocks.0.extra" and next(iter(model.hook_dict)) == "hook_tokens"
    model.add_hook("blocks.0.extra", lambda x, hook: seen.append("extra"))
    model.blocks[0].extra(torch.zeros(1))
    model(tokens, stop_at_layer=0)
    model.reset_hooks()
    assert seen == ["extra", "embed"]


# Parts of ours whose forward somebody replaced, subclasses, and sweeps of all that.


def negated(model: HookedTransformer, part: str) -> None:
    """A part writes the negative of what it wrote, by a `forward` of the instance."""
    module = model.get_submodule(part)
    before = module.forward
    module.forward = lambda *args, **kwargs: -before(*args, **kwargs)  # type: ignore[method-assign]


class Negative(nn.Module):
    def __init__(self, old: nn.Module):
        super().__init__()
        self.old = old

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return -self.old(*args, **kwargs)


PARTS = ["blocks.1.mlp", "blocks.1.attn", "blocks.1", "blocks.1.ln1", "blocks.1.ln2", "ln_final", "unembed", "embed"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.no_grad()
def test_a_replaced_forward_counts_as_a_wrapper_does(architecture: str, part: str) -> None:
    plain, patched, wrapped = network(architecture), network(architecture), network(architecture)
    tokens = some_tokens()
    negated(patched, part)
    parent, _, last = part.rpartition(".")
    setattr(wrapped.get_submodule(parent), last, Negative(wrapped.get_submodule(part)))
    wrapped.setup()
    out = patched(tokens)
    torch.testing.assert_close(out, wrapped(tokens))
    assert not torch.allclose(out, plain(tokens), atol=1e-2)
    assert plain.untouched() and not patched.untouched() and not wrapped.untouched()


@pytest.mark.parametrize("kind", [Attention, MLP, TransformerBlock, LayerNorm])
@torch.no_grad()
def test_a_forward_replaced_in_the_class_is_called_with_the_dialects_arguments(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens, before, given = network("gpt2"), some_tokens(), kind.forward, []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(set(kwargs))
        return before(self, *args, **kwargs)

    clean = model(tokens)
    monkeypatch.setattr(kind, "forward", forward)
    torch.testing.assert_close(model(tokens), clean)
    assert len(given) >= 2 and not any(names & {"stream", "heads"} for names in given)


def own_forward(model: HookedTransformer) -> None:
    class Halved(TransformerBlock):
        def forward(self, resid: Tensor, shortformer_pos_embed: Any = None, past_kv_cache_entry: Any = None,
                    attention_mask: Any = None) -> Tensor:  # fmt: skip
            return super().forward(resid / 2, shortformer_pos_embed, past_kv_cache_entry, attention_mask)

    model.blocks[1].__class__ = Halved


def own_method(model: HookedTransformer) -> None:
    model.blocks[1].mlp.forward = types.MethodType(lambda self, x: -MLP.forward(self, x), model.blocks[1].mlp)


def other_parts(model: HookedTransformer) -> None:
    for block in model.blocks:
        block.mlp, block.attn = Negative(block.mlp), Wrapped(block.attn)
    model.setup()


def linear(model: HookedTransformer) -> None:
    torch.manual_seed(0)
    model.blocks[0].mlp = nn.Linear(24, 24)
    model.setup()


def across_positions(model: HookedTransformer) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.roll(1, 1)

    model.blocks[1].hook_mlp_out = Shifted()
    model.setup()


def hooked(model: HookedTransformer) -> None:
    model.add_hook("blocks.1.attn.hook_z", lambda x, hook: x * torch.arange(x.shape[1])[:, None, None])


def without_mask(model: HookedTransformer) -> None:
    model.blocks[1].attn.apply_causal_mask = lambda scores, *args, **kwargs: scores


def whole_forward(model: HookedTransformer) -> None:
    class Negated(HookedTransformer):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return -super().forward(*args, **kwargs)

    model.__class__ = Negated


def delegating(model: HookedTransformer) -> None:
    class Delegating(HookedTransformer):
        """As SAELens's: something is set up around each run."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model.__class__ = Delegating


def other_unembedding(model: HookedTransformer) -> None:
    negated(model, "unembed")


CHANGES = [
    delegating, own_forward, own_method, without_mask, whole_forward, other_parts, linear, across_positions, hooked,
    other_unembedding,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_sweep_is_its_runs_by_hand_whatever_stands_inside(change: Callable[[HookedTransformer], None]) -> None:
    model, clean, corrupt = network("gpt2"), some_tokens(seed=1), some_tokens(seed=2)
    change(model)
    _, cache = model.run_with_cache(clean)

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 1].sum() - logits[:, -1, 2].sum()

    def by_hand(layer: int, pos: int) -> Tensor:
        def put(x: Tensor, hook: HookPoint) -> None:
            x[:, pos] = cache["resid_pre", layer][:, pos]

        return metric(model.run_with_hooks(corrupt, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)]))

    found = patching.get_act_patch_resid_pre(model, corrupt, cache, metric)
    expected = torch.stack([torch.stack([by_hand(layer, pos) for pos in range(9)]) for layer in (0, 1)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    if type(model).__name__ == "Negated":
        with pytest.raises(ConfigError, match="the forward pass of Negated gives other logits than its network"):
            sweep(model, corrupt, residual(edits.zero()), metrics.logit_difference(1, 2))
        return
    sweep(model, corrupt, residual(edits.zero()), metrics.logit_difference(1, 2), audit=99)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "gpt-j", "bloom", "bidirectional", "split inputs"])
@pytest.mark.parametrize("step", ATTENTION_STEPS)
@torch.no_grad()
def test_a_replaced_step_of_attention_is_called(name: str, step: str) -> None:
    model, tokens, calls = network(name), some_tokens(), []
    attn = model.blocks[1].attn
    if (step == "apply_rotary" and attn.rotary is None) or (step == "apply_causal_mask" and name == "bidirectional"):
        return
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    runs = (lambda: model(tokens), lambda: model(tokens, attention_mask=mask)[mask.bool()])
    clean = [run() for run in runs]
    before = getattr(attn, step)

    def instead(*args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        return before(*args, **kwargs)

    setattr(attn, step, instead)
    for run, expected in zip(runs, clean, strict=True):
        torch.testing.assert_close(run(), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) >= 2
    if name != "bidirectional":
        kept = KeyValueCache.init_cache(model.cfg, "cpu", 3)
        first, then = (model(part, past_kv_cache=kept) for part in (tokens[:, :5], tokens[:, 5:]))
        torch.testing.assert_close(torch.cat([first, then], 1), clean[0], rtol=1e-4, atol=1e-4)


def test_one_hook_point_at_two_places_is_warned_of_once_and_its_other_name_says_so() -> None:
    model, seen = network("gpt2"), []
    model.blocks[1].hook_mlp_out = model.blocks[0].hook_mlp_out
    with pytest.warns(SharedHookPoint, match=r"'blocks\.0\.hook_mlp_out' stands at 'blocks\.1\.hook_mlp_out', too"):
        model.setup()
    model.setup()  # says it once
    with pytest.raises(UnknownSite, match=r"'blocks\.1\.hook_mlp_out' is the hook point 'blocks\.0\.hook_mlp_out'"):
        model.add_hook("blocks.1.hook_mlp_out", lambda x, hook: None)
    model.run_with_hooks(some_tokens(), fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: seen.append(hook.name))])
    assert len(seen) == 2
    model.blocks[1].hook_mlp_out = HookPoint()
    model.setup()
    assert "blocks.1.hook_mlp_out" in model.hook_dict and not model.also_called
    model.blocks[1] = model.blocks[0]
    with pytest.warns(SharedHookPoint, match="and 22 more"):
        model.setup()
