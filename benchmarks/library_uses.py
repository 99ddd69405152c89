"""Uses of the field's libraries that run on either side: on a small random network and on SmolLM2-135M.

Each returns arrays by name; `libraries.py` runs them on cutaway and on TransformerLens 2.18 and compares. Names come from
`transformer_lens`, which is one or the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]


# ------------------------------------------------------------------------------------------------ networks


def small(kind: Any, **changes: Any) -> Any:
    """A small model of this class whose weights depend on nothing but their names and shapes."""
    from transformer_lens import HookedTransformerConfig

    cfg = {"n_layers": 2, "d_model": 32, "d_head": 8, "n_heads": 4, "n_ctx": 32, "d_vocab": 50, "act_fn": "gelu", "device": "cpu"}
    return draw_weights(kind(HookedTransformerConfig(**cfg | changes)))


def smollm2(kind: Any, folder: Path, **changes: Any) -> Any:
    """SmolLM2-135M as a model of this class, from the weights that `libraries.prepare` wrote."""
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformerConfig

    cfg = np.load(folder / "inputs.npz", allow_pickle=True)["cfg"].item()
    model = kind(HookedTransformerConfig(**cfg | changes))
    model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def tokens_of(folder: Path, name: str = "clean") -> Any:
    """The prompts (`clean`, `corrupted`) or `answers` of SmolLM2."""
    import torch

    return torch.from_numpy(np.load(folder / "inputs.npz", allow_pickle=True)[name])


def draw_weights(module: Any, spread: float = 0.2) -> Any:
    """Weights from a generator of their own, in the order of names."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator) * spread
        parameter.data.copy_(noise + name.endswith((".w", "ln_final.w")))
    return module


def some_tokens(seed: int, rows: int = 2, length: int = 9) -> Any:
    """Tokens of the small vocabulary."""
    import torch

    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


class Plain:
    """As much of a tokenizer as a graph of tokens needs: a token is its number."""

    padding_side, bos_token, bos_token_id, all_special_ids = "right", "1", 1, [1]
    eos_token, eos_token_id, pad_token, pad_token_id, name_or_path = "1", 1, "1", 1, "plain"

    def __init__(self, vocab_size: int = 50, **_: Any) -> None:
        self.vocab_size = vocab_size

    def get_vocab(self) -> dict[str, int]:
        """All words."""
        return {str(i): i for i in range(self.vocab_size)}

    def encode(self, text: str, **_: Any) -> list[int]:
        """Numbers of words."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **_: Any) -> str:
        """Words of numbers."""
        return " ".join(str(int(one)) for one in np.atleast_1d(np.asarray(ids)))


# ------------------------------------------------------------------------------------------------ EAP and EAP-IG


class Edges:
    """The edges of a model whose flags are set: what writers' outputs differ by between two inputs, and the readers' hooks.

    The scoring of Hanna et al. (2024), "Have Faith in Faithfulness", whose code is no package; this is our own in its manner.
    """

    def __init__(self, model: Any, rows: int, length: int):
        import torch

        layers, heads = model.cfg.n_layers, model.cfg.n_heads
        writers, readers = 1 + layers * (heads + 1), layers * (3 * heads + 1) + 1
        self.difference = torch.zeros(rows, length, writers, model.cfg.d_model)
        self.scores = torch.zeros(writers, readers)
        self.write, self.read = [("hook_embed", 0, 1)], []
        for layer in range(layers):
            first, row = 1 + layer * (heads + 1), layer * (3 * heads + 1)
            self.write += [(f"blocks.{layer}.attn.hook_result", first, heads), (f"blocks.{layer}.hook_mlp_out", first + heads, 1)]
            self.read += [(f"blocks.{layer}.hook_{x}_input", first, row + i * heads, heads) for i, x in enumerate("qkv")]
            self.read += [(f"blocks.{layer}.hook_mlp_in", first + heads, row + 3 * heads, 1)]
        self.read += [(f"blocks.{layers - 1}.hook_resid_post", writers, readers - 1, 1)]

    def noting(self, sign: int) -> list[Any]:
        """Hooks that add what is written to the difference, or take it away."""

        def at(first: int, count: int) -> Callable[..., None]:
            def hook(x: Any, hook: Any) -> None:
                self.difference[:, :, first : first + count] += sign * x.detach().reshape(*x.shape[:2], count, -1)

            return hook

        return [(name, at(first, count)) for name, first, count in self.write]

    def scoring(self) -> list[Any]:
        """Backward hooks that add the product of differences and a reader's gradient to the scores."""
        import torch

        def at(before: int, column: int, count: int) -> Callable[..., None]:
            def hook(grad: Any, hook: Any) -> None:
                grad = grad.detach().reshape(*grad.shape[:2], count, -1)
                found = torch.einsum("bpwd,bprd->wr", self.difference[:, :, :before], grad)
                self.scores[:before, column : column + count] += found

            return hook

        return [(name, at(*places)) for name, *places in self.read]

    def corrupting(self, cut: Any) -> list[Any]:
        """Hooks that write the other input's part of these edges, `[writer, reader]`, into what readers are given."""
        import torch

        def at(before: int, column: int, count: int) -> Callable[..., Any]:
            def hook(x: Any, hook: Any) -> Any:
                part = cut[:before, column : column + count]
                x += torch.einsum("bpwd,wr->bprd", self.difference[:, :, :before], part).reshape(x.shape)
                return x

            return hook

        return [(name, at(*places)) for name, *places in self.read]


def with_flags(model: Any) -> Any:
    """The model with an input for each head and each head's result."""
    for flag in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(model, f"set_use_{flag}")(True)
    model.set_ungroup_grouped_query_attention(True)
    return model


def margin(logits: Any, answers: Any) -> Any:
    """How far the wrong answers' logits are above the right ones', on average."""
    import torch

    rows = torch.arange(len(answers))
    return (logits[rows, -1, answers[:, 1]] - logits[rows, -1, answers[:, 0]]).mean()


def eap_ig(model: Any, clean: Any, corrupted: Any, answers: Any, steps: int = 3) -> Any:
    """Scores of edges, `[writer, reader]`: the writers' differences times gradients along the way between two inputs."""
    import torch

    edges = Edges(model, *clean.shape)
    with torch.no_grad():
        model.run_with_hooks(corrupted, fwd_hooks=edges.noting(1))
        start = edges.difference[:, :, 0].clone()
        model.run_with_hooks(clean, fwd_hooks=edges.noting(-1))
    end, backward = start - edges.difference[:, :, 0], edges.scoring()
    for step in range(steps):
        point = (start + step / steps * (end - start)).requires_grad_(True)
        with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook, point=point: point)], bwd_hooks=backward):
            margin(model(clean), answers).backward()
    return edges.scores / len(clean) / steps


def eap(model: Any, inputs: tuple[Any, ...], clean: Any, corrupted: Any, answers: Any) -> Any:
    """Scores with gradients of some inputs: the clean one (EAP), or both."""
    import torch

    edges = Edges(model, *clean.shape)
    with torch.inference_mode():
        model.run_with_hooks(corrupted, fwd_hooks=edges.noting(1))
        model.run_with_hooks(clean, fwd_hooks=edges.noting(-1))
    for tokens in inputs:

        def differentiated(x: Any, hook: Any) -> Any:
            return x.detach().clone().requires_grad_(True)

        with model.hooks(fwd_hooks=[("hook_embed", differentiated)], bwd_hooks=edges.scoring()):
            margin(model(tokens), answers).backward()
    return edges.scores / len(clean) / len(inputs)


def kept_circuit(model: Any, scores: Any, clean: Any, corrupted: Any) -> Any:
    """Logits at the end with all but the 2,000 strongest edges corrupted."""
    import torch

    edges, cut = Edges(model, *clean.shape), torch.ones_like(scores)
    cut.view(-1)[scores.abs().flatten().topk(2000).indices] = 0
    with torch.inference_mode():
        model.run_with_hooks(corrupted, fwd_hooks=edges.noting(1))
        logits = model.run_with_hooks(clean, fwd_hooks=[*edges.noting(-1), *edges.corrupting(cut)])
    return logits[:, -1]


def try_edge_scores(folder: Path) -> Arrays:
    """EAP, clean and corrupted gradients, and a circuit of EAP's strongest edges, on SmolLM2."""
    from transformer_lens import HookedTransformer

    model = with_flags(smollm2(HookedTransformer, folder))
    clean, corrupted, answers = (tokens_of(folder, name) for name in ("clean", "corrupted", "answers"))
    scores = eap(model, (clean,), clean, corrupted, answers)
    both = eap(model, (clean, corrupted), clean, corrupted, answers)
    logits = kept_circuit(model, scores, clean, corrupted)
    return {"eap": scores.numpy(), "both": both.numpy(), "circuit": logits.float().numpy()}


# ------------------------------------------------------------------------------------------------ the libraries


def dictionary(site: str, d_in: int, d_sae: int) -> Any:
    """A sparse autoencoder of SAELens whose weights are drawn."""
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    cfg = StandardSAEConfig(
        d_in=d_in, d_sae=d_sae, dtype="float32", device="cpu", metadata=SAEMetadata(hook_name=site, hook_head_index=None),
        reshape_activations="hook_z" if site.endswith("hook_z") else "none",
    )  # fmt: skip
    return draw_weights(StandardSAE(cfg), d_in**-0.5)


def with_dictionaries(model: Any, tokens: Any, sites: tuple[str, ...], d_in: int, d_sae: int) -> Arrays:
    """Logits and features with a dictionary at each site in turn: with and without its error term, and without its features."""
    import torch

    found: Arrays = {}
    for site in sites:
        sae = dictionary(site, d_in, d_sae)
        for error in (False, True):
            sae.use_error_term = error
            logits, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
            found[f"{site} {error} logits"] = logits.detach().numpy()
            found |= {f"{site} {error} {name}": cache[name].detach().numpy() for name in cache if name.startswith(site)}
            zeroed = model.run_with_hooks_with_saes(
                tokens, saes=[sae], fwd_hooks=[(f"{site}.hook_sae_acts_post", lambda x, hook: torch.zeros_like(x))]
            )
            found[f"{site} {error} without features"] = zeroed.detach().numpy()
        assert not any("hook_sae" in name for name in model.hook_dict)
    return found


def try_sae_lens(folder: Path) -> Arrays:
    """Dictionaries at three sites of a small `HookedSAETransformer`."""
    from sae_lens import HookedSAETransformer

    sites = ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out")
    return with_dictionaries(small(HookedSAETransformer), some_tokens(1), sites, 32, 64)


def try_sae_lens_smollm2(folder: Path) -> Arrays:
    """Dictionaries at two sites of SmolLM2, and what an activations store gives of a third."""
    import torch
    from datasets import Dataset
    from sae_lens import ActivationsStore, HookedSAETransformer

    model, tokens = smollm2(HookedSAETransformer, folder), tokens_of(folder)
    found = with_dictionaries(model, tokens, ("blocks.10.hook_mlp_out", "blocks.20.attn.hook_z"), 576, 1000)
    model.tokenizer, rows = Plain(model.cfg.d_vocab), tokens.repeat(40, 1).tolist()
    store = ActivationsStore(
        model, Dataset.from_dict({"tokens": rows}), streaming=False, hook_name="blocks.15.hook_resid_post",
        hook_head_index=None, context_size=12, d_in=576, n_batches_in_buffer=2, total_training_tokens=64,
        store_batch_size_prompts=4, train_batch_size_tokens=16, prepend_bos=True, dtype="float32",
        normalize_activations="expected_average_only_in", device=torch.device("cpu"),
    )  # fmt: skip
    batch = store.get_batch_tokens()
    torch.manual_seed(0)
    kept, mixed = store.get_activations(batch), store.next_batch()
    return found | {"store tokens": batch.numpy(), "store": kept.numpy(), "mixed": mixed.numpy()}


def replaced(model: Any, tokens: Any, d_model: int, d_transcoder: int, spread: float) -> Arrays:
    """The attribution graph of a replacement model whose transcoders are drawn at random."""
    import torch
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    relu = torch.nn.functional.relu
    kind = functools.partial(SingleLayerTranscoder, d_model, d_transcoder, relu, device="cpu", dtype=torch.float32)
    parts = {layer: draw_weights(kind(layer_idx=layer), spread) for layer in range(model.cfg.n_layers)}
    model.tokenizer = Plain(model.cfg.d_vocab)
    model._configure_replacement_model(TranscoderSet(parts, "mlp.hook_in", "mlp.hook_out"))
    graph = attribute(tokens, model, max_n_logits=3, batch_size=64, verbose=False)
    return {"adjacency": graph.adjacency_matrix.detach().numpy(), "logits": graph.logit_probabilities.detach().numpy()}


def try_circuit_tracer(folder: Path) -> Arrays:
    """A graph of a small replacement model."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

    return replaced(small(TransformerLensReplacementModel), some_tokens(3, 1)[0], 32, 40, 0.2)


def try_circuit_tracer_smollm2(folder: Path) -> Arrays:
    """A graph of SmolLM2 with four features in each layer."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel

    return replaced(smollm2(TransformerLensReplacementModel, folder), tokens_of(folder)[0, :6], 576, 4, 0.05)


def patched(model: Any, clean: Any, corrupted: Any, right: list[Any], wrong: list[Any]) -> Arrays:
    """Mask gradients of all edges, integrated and not, the logits of the patched model, and of a circuit of it."""
    import torch
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune import run_circuits
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.types import PatchType
    from auto_circuit.utils.graph_utils import patchable_model

    pairs = PromptDataset(clean, corrupted, right, wrong)
    loader = PromptDataLoader(pairs, seq_len=clean.shape[1], diverge_idx=0, batch_size=len(clean))
    graph = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)
    found: Arrays = {"logits": graph(clean)[:, -1].detach().numpy()}
    for name, options in (("once", {"mask_val": 0.0}), ("integrated", {"integrated_grad_samples": 3})):
        scores = mask_gradient_prune_scores(graph, loader, None, "logit", "avg_diff", **options)
        found |= {f"{name} {module}": one.numpy() for module, one in scores.items()}
    drawn = torch.Generator().manual_seed(0)  # computed scores have near ties, in which rounding would decide
    scores = {module: torch.rand(one.shape, generator=drawn) for module, one in sorted(scores.items())}
    circuit = run_circuits(graph, loader, [graph.n_edges // 4], scores, patch_type=PatchType.TREE_PATCH)
    return found | {"circuit": next(iter(circuit[graph.n_edges // 4].values())).detach().numpy()}


def try_auto_circuit(folder: Path) -> Arrays:
    """Edges of a small model."""
    import torch
    from transformer_lens import HookedTransformer

    model = small(HookedTransformer, use_split_qkv_input=True, use_hook_mlp_in=True, use_attn_result=True)
    right, wrong = ([torch.tensor([one]) for one in pair] for pair in ((3, 4), (5, 6)))
    return patched(model, some_tokens(1), some_tokens(2), right, wrong)


def try_auto_circuit_smollm2(folder: Path) -> Arrays:
    """Edges of SmolLM2."""
    from transformer_lens import HookedTransformer

    clean, corrupted, answers = (tokens_of(folder, name)[:1] for name in ("clean", "corrupted", "answers"))
    return patched(with_flags(smollm2(HookedTransformer, folder)), clean, corrupted, [answers[0, :1]], [answers[0, 1:]])


TRIALS = {name.removeprefix("try_"): use for name, use in sorted(globals().items()) if name.startswith("try_")}
"""The uses by name."""
