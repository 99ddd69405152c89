"""Modules of others at hook points and in place of parts; hook points that are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.errors import HookReturned
from cutaway.model.hook_points import HookPoint
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


@every
def test_a_foreign_module_at_every_site(name: str) -> None:
    model, tokens = network(name), some_tokens()
    clean = model(tokens)
    for site in model.sites:
        if site.endswith("hook_attn_in") and model.cfg.n_key_value_heads is not None:
            continue
        parent, _, last = site.rpartition(".")
        owner = model.get_submodule(parent) if parent else model
        before, seen = getattr(owner, last), []
        setattr(owner, last, Doubling())
        model.setup()
        inside = f"{site}.hook_inside"
        assert site not in model.hook_dict and inside in model.hook_dict
        out = model.run_with_hooks(tokens, fwd_hooks=[(inside, lambda x, hook: seen.append(hook.name))])  # noqa: B023
        assert set(seen) == {inside}
        torch.testing.assert_close(out, clean, rtol=1e-4, atol=1e-4, msg=site)
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_inside"))
        assert list(cache) == [inside]
        setattr(owner, last, before)
        model.setup()
        assert site in model.sites and inside not in model.hook_dict
    assert torch.equal(model(tokens), clean)


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
