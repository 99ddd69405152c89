"""What a run holds while it runs and afterwards: its output and what was asked for, and nothing that waits for a collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cutaway import HookedTransformer, HookedTransformerConfig, edits, metrics, sweep

TOKENS = torch.randint(0, 20, (2, 48), generator=torch.Generator().manual_seed(1))
RESID = 2 * 48 * 32 * 4  # bytes of one stream


class Alive(TorchDispatchMode):
    """The memory of tensors that were made in here and are still held by somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, weakref.ref[torch.Tensor]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.made[id(x)] = weakref.ref(x)
        self.peak = max(self.peak, self.bytes)
        return out

    @property
    def bytes(self) -> int:
        """Each piece of memory once, however many tensors look at it."""
        here = [x for one in self.made.values() if (x := one()) is not None]
        self.made = {id(x): weakref.ref(x) for x in here}
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in here}.values())


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    made = HookedTransformer(HookedTransformerConfig(
        n_layers=6, d_model=32, n_ctx=48, d_head=8, n_heads=4, d_vocab=20, seed=0, act_fn="gelu", normalization_type="RMS",
        positional_embedding_type="rotary", rotary_dim=8,
    ))  # fmt: skip
    with torch.no_grad(), Alive():  # what is made once and kept with the network
        made.run_with_cache(TOKENS)
    return made


@pytest.fixture(autouse=True)
def without_a_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    with torch.no_grad():
        yield
    gc.enable()


def held(run: Callable[[], Any]) -> tuple[Any, int, int]:
    """What a function gives, the peak of memory, and what is held at its end."""
    with Alive() as alive:
        out = run()
        return out, alive.peak, alive.bytes


FILTERS: dict[str, Any] = {
    "one": "blocks.2.hook_resid_pre",
    "several": [f"blocks.{layer}.hook_resid_pre" for layer in range(6)],
    "predicate": lambda name: name.endswith("hook_z"),
    "views": lambda name: name.endswith(("hook_q", "hook_v", "hook_attn_in")),
}


@pytest.mark.parametrize("options", [{}, {"pos_slice": -1}, {"pos_slice": (3, 7), "remove_batch_dim": True}], ids=str)
@pytest.mark.parametrize("names", FILTERS.values(), ids=FILTERS)
def test_a_filtered_cache_costs_what_it_keeps(model: HookedTransformer, names: Any, options: dict[str, Any]) -> None:
    tokens = TOKENS[:1] if "remove_batch_dim" in options else TOKENS
    _, plain, after = held(lambda: model(tokens, return_type="logits"))
    (logits, cache), peak, kept = held(lambda: model.run_with_cache(tokens, names_filter=names, **options))
    own = sum(x.nbytes for x in cache.values())
    assert own > 0 and sum(x.untyped_storage().nbytes() for x in cache.values()) == own
    origin = tokens.nbytes  # a cache knows which tokens ran
    assert kept <= after + own + origin and peak <= plain + own + origin
    assert after - logits.nbytes <= RESID / 8  # where the last run stood: its positions, no activations


def test_the_instrument_sees_what_a_run_holds(model: HookedTransformer) -> None:
    def hoard() -> Any:
        found: list[torch.Tensor] = []
        hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: found.append(x)) for layer in range(6)]
        return model.run_with_hooks(TOKENS, fwd_hooks=hooks), found

    _, plain, after = held(lambda: model(TOKENS))
    _, peak, kept = held(hoard)
    assert kept >= after + 6 * RESID and peak >= plain + 3 * RESID


def test_what_was_kept_goes_with_its_cache(model: HookedTransformer) -> None:
    """Without waiting for a collector: on a small machine two caches may be more than it has."""
    metric = metrics.loss(TOKENS)

    def swept() -> None:
        _, cache = model.run_with_cache(TOKENS.flip(1), names_filter="blocks.2.attn.hook_z")
        sweep(model, TOKENS, [edits.patch(cache).at(("z", 2), heads=h) for h in range(4)], metric, audit=1)

    runs: list[Callable[[], Any]] = [
        lambda: model.run_with_cache(TOKENS),
        lambda: model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x * 2)]),
        swept,
        lambda: model.generate(TOKENS[:, :8], max_new_tokens=4, stop_at_eos=False, verbose=False),
    ]
    for run in runs:
        with Alive() as alive:
            run()
            model(TOKENS[:, :4])  # forgets where the run before stood
            assert alive.bytes <= RESID / 4
