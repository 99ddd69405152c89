"""On a graphics card, GPT-2 small's shapes with random weights: forward, everything cached, generation, in three precisions.

`plain` is `transformers` in this environment, `peer` TransformerLens 2.18 in its own. Where there is no card, nothing is
measured and that is said. Times are wall times with the card waited for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beside import Claim, main
from gpt2_small import NEW, prepare, snapshot

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
    return cases(folder, lambda dtype: load(place, dtype=dtype, device=DEVICE), lambda model, x: model(x), dialect)


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

    return cases(folder, load, lambda model, x: model(x, use_cache=False).logits, generate)


if __name__ == "__main__":
    import torch

    if not torch.cuda.is_available():
        print("no graphics card that Torch can use is here, so nothing was measured")
        raise SystemExit(0)
    main(__file__, CLAIMS, prepare, rounds=5, seconds=1.0)
