"""GPT-2 small's shapes with random weights: forward, cache, generation, attribution and loading.

`plain` is `transformers` in this environment, `peer` TransformerLens 2.18 in its own. All read the same folder, which
is laid out as a Hugging Face cache, because the peer asks for models by name only. Nothing is fetched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beside import Arrays, Claim, main

LAYERS, HEADS, WIDTH, VOCAB, CONTEXT = 12, 12, 768, 50257, 1024
PARAMETERS = 163_049_041 * 4  # bytes in the canonical form, where the unembedding is a tensor of its own
NEW = 32  # generated tokens

CLAIMS = [
    Claim("forward", "forward, 8 × 64, beside `transformers`", at_most=1.05, baseline="plain", tolerance=1e-4),
    Claim("cache", "`run_with_cache` of everything, 8 × 64, beside our own forward", at_most=1.1, baseline="ours",
          baseline_case="forward_only"),
    Claim("cache", "`run_with_cache` of everything, 8 × 64, beside the peer", tolerance=1e-4),
    Claim("cache_long", "`run_with_cache` of everything, 1 × 1024", at_least=1, tolerance=1e-4),
    Claim("generate", "32 greedy tokens after 16, batch of 8, beside `transformers`", at_most=1.1, baseline="plain", tolerance=0),
    Claim("attribute", "attribution of all 144 heads to the next token, of a kept run, 8 × 64", at_least=8,
          tolerance=1e-4, rounds=3),
    Claim("attribute", "extra memory of that attribution", at_least=3, tolerance=1e-4, rounds=3, memory=True),
    Claim("attribute", "the same, where the peer has kept the results of its heads",
          baseline_case="attribute_kept", tolerance=1e-4),
    Claim("load", "peak memory of loading with processing, above the imports", memory=True),
]  # fmt: skip

LOAD = """
import re, sys
sys.path.insert(0, {here!r})
from beside import peak_memory
{imports}
before, _ = peak_memory(reset=True)
model = {load}
print(peak_memory()[1] - before)
"""


def snapshot(folder: Path) -> Path:
    return folder / "hub" / "models--gpt2" / "snapshots" / ("0" * 40)


def prepare(folder: Path) -> None:
    """A Hugging Face cache that holds one model called gpt2, of random weights that make attention sharp."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    random = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 0.02) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    weights = {"wte.weight": normal(VOCAB, WIDTH, scale=0.1), "wpe.weight": normal(CONTEXT, WIDTH, scale=0.05)}
    for layer in range(LAYERS):
        for name, shape in {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (WIDTH, 4 * WIDTH),
                            "mlp.c_proj": (4 * WIDTH, WIDTH)}.items():  # fmt: skip
            weights[f"h.{layer}.{name}.weight"] = normal(*shape, scale=0.06 if name == "attn.c_attn" else 0.02)
            weights[f"h.{layer}.{name}.bias"] = normal(shape[1])
        for norm in ("ln_1", "ln_2"):
            weights[f"h.{layer}.{norm}.weight"], weights[f"h.{layer}.{norm}.bias"] = 1 + normal(WIDTH), normal(WIDTH)
    weights["ln_f.weight"], weights["ln_f.bias"] = 1 + normal(WIDTH), normal(WIDTH)
    place = snapshot(folder)
    place.mkdir(parents=True)
    save_file({f"transformer.{name}": array for name, array in weights.items()}, place / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH,
        "n_positions": CONTEXT, "n_ctx": CONTEXT, "vocab_size": VOCAB, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1, "tie_word_embeddings": True,
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))
    refs = place.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(place.name)
    words = {f"w{number}": number for number in range(VOCAB - 1)} | {"<|endoftext|>": VOCAB - 1}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(str(place))
    described = place / "tokenizer_config.json"  # newer versions write a class that older ones do not know
    described.write_text(json.dumps(json.loads(described.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    np.save(folder / "short.npy", random.integers(0, VOCAB - 1, (8, 64)))
    np.save(folder / "long.npy", random.integers(0, VOCAB - 1, (1, CONTEXT)))
    np.save(folder / "prompts.npy", random.integers(0, VOCAB - 1, (8, 16)))


def in_a_process_of_its_own(imports: str, load: str) -> Callable[[], dict[str, int]]:
    """Load once in a fresh interpreter; only its peak of memory comes back."""
    code = LOAD.format(here=str(Path(__file__).resolve().parent), imports=imports, load=load)

    def run() -> dict[str, int]:
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return {"memory": int(done.stdout.split()[-1])}

    return run


def selected(logits: Any, kept: Any) -> Arrays:
    """What is compared of a cached run: some log-probabilities and a few sites."""
    sites = [
        "blocks.0.attn.hook_pattern",
        "blocks.5.attn.hook_z",
        "blocks.7.mlp.hook_post",
        f"blocks.{LAYERS - 1}.hook_resid_post",
    ]
    return {"logits": logits.log_softmax(-1)[:, -4:].numpy(), **{site: kept[site].numpy() for site in sites}}


def dialect(load: Callable[[str], Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """The cases that read the same in the peer and here."""
    import torch

    torch.set_grad_enabled(False)
    model = load("gpt2")
    short, long, prompts = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("short", "long", "prompts"))

    def generate() -> Any:
        return model.generate(prompts, max_new_tokens=NEW, do_sample=False, stop_at_eos=False, verbose=False)

    return model, {
        "forward": (lambda: model(short), lambda: {"logits": model(short).log_softmax(-1).numpy()}),
        "forward_only": (lambda: model(short), dict),
        "cache": (lambda: model.run_with_cache(short), lambda: selected(*model.run_with_cache(short))),
        "cache_long": (lambda: model.run_with_cache(long), lambda: selected(*model.run_with_cache(long))),
        "generate": (generate, lambda: {"tokens": generate().numpy()}),
    }


def peer(folder: Path) -> dict[str, Any]:
    """TransformerLens 2.18."""
    os.environ["HF_HUB_CACHE"] = str(folder / "hub")
    import torch
    from transformer_lens import HookedTransformer

    model, cases = dialect(HookedTransformer.from_pretrained, folder)
    short = torch.from_numpy(np.load(folder / "short.npy"))
    following = short.roll(-1, 1)

    _, kept = model.run_with_cache(short)

    def attribute() -> Any:
        """With the results of heads computed first, as the peer does unless a flag made it keep them."""
        kept.cache_dict = {name: tensor for name, tensor in kept.cache_dict.items() if not name.endswith("hook_result")}
        return attribute_kept()

    def attribute_kept() -> Any:
        stack = kept.stack_head_results(layer=-1)
        scaled = kept.apply_ln_to_stack(stack, layer=-1)
        directions = model.tokens_to_residual_directions(following)
        return torch.einsum("cbpd,bpd->cbp", scaled, directions)[..., :-1]  # the last position has no next token

    load = in_a_process_of_its_own("from transformer_lens import HookedTransformer", "HookedTransformer.from_pretrained('gpt2')")
    return cases | {
        "load": (load, dict),
        "attribute": (attribute, lambda: {"attribution": attribute().numpy()}),
        "attribute_kept": (attribute_kept, lambda: {"attribution": attribute_kept().numpy()}),
    }


def plain(folder: Path) -> dict[str, Any]:
    """The model as `transformers` runs it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(snapshot(folder)).eval()
    short, prompts = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("short", "prompts"))

    def forward() -> Any:
        return model(short, use_cache=False).logits

    def generate() -> Any:
        mask = torch.ones_like(prompts)
        return model.generate(
            prompts, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
        )

    return {
        "forward": (forward, lambda: {"logits": forward().log_softmax(-1).numpy()}),
        "generate": (generate, lambda: {"tokens": generate().numpy()}),
    }


def ours(folder: Path) -> dict[str, Any]:
    """Cutaway."""
    import torch

    from cutaway import HookedTransformer
    from cutaway.analysis.attribution import attribute

    place = str(snapshot(folder))
    model, cases = dialect(lambda _: HookedTransformer.from_pretrained(place), folder)
    short = torch.from_numpy(np.load(folder / "short.npy"))
    _, kept = model.run_with_cache(short)

    def heads() -> Arrays:
        values = attribute(kept, short).values
        rows = [number for number, name in enumerate(values.labels["component"]) if name.replace(".", "").isdigit()]
        return {"attribution": values.data[rows, :, :-1].numpy()}

    imports = "import transformers\nfrom transformers import AutoTokenizer\nfrom cutaway import HookedTransformer"
    load = in_a_process_of_its_own(imports, f"HookedTransformer.from_pretrained({place!r})")
    return cases | {"load": (load, dict), "attribute": (lambda: attribute(kept, short), heads)}


if __name__ == "__main__":
    main(__file__, CLAIMS, prepare, rounds=5, seconds=1.0)
