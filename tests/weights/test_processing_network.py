"""The network against a plainly written forward pass, and the laws of processing on the network itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutaway.config import HookedTransformerConfig
from cutaway.model.transformer import Transformer
from cutaway.sources import files
from cutaway.weights import canonical, processing
from tests.weights.plain_transformer import Plain
from tests.weights.test_processing import ARCHITECTURES, distance, every_architecture, model, quiet


def network(weights: dict[str, torch.Tensor], cfg: HookedTransformerConfig) -> Transformer:
    cfg = canonical.with_normalization(cfg, cfg.normalization_type)
    cfg.dtype = next(iter(weights.values())).dtype
    net = Transformer(cfg)
    net.load_state_dict(weights)
    return net


@torch.no_grad()
def log_probs(net: Transformer, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
    logits = net(tokens)
    return logits.log_softmax(-1), max(1.0, logits.abs().max().item())


@every_architecture
def test_the_network_computes_what_is_plainly_written(name: str) -> None:
    weights, cfg, tokens = model(name)
    expected = Plain(weights, cfg).logits(tokens)
    with torch.no_grad():
        found = network(weights, cfg)(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@every_architecture
def test_a_processed_network_gives_the_same_log_probabilities(name: str) -> None:
    weights, cfg, tokens = model(name)
    processed, after = quiet(processing.process, weights, cfg)
    before, largest = log_probs(network(weights, cfg), tokens)
    now, _ = log_probs(network(processed, after), tokens)
    assert (before - now).abs().max() < 1e-10 * largest


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_published_toy_the_way_its_notebook_processes_it(shared: Path, dtype: torch.dtype, close: float) -> None:
    cfg = HookedTransformerConfig(
        n_layers=2, n_heads=3, d_model=42, d_head=14, n_ctx=20, d_vocab=11, attn_only=True, device="cpu", eps=1e-5
    )
    published = files.read(shared / "data/checkpoints/first_unique_char_model.pt", cfg).tensors
    weights = {name: tensor.to(dtype) for name, tensor in canonical.without_buffers(published).items()}
    tokens = torch.randint(10, (50, 20), generator=torch.Generator().manual_seed(0))
    rewritten = weights
    for rewrite in ("center_writing_weights", "center_unembed", "fold_layer_norm", "fold_value_biases"):
        rewritten = getattr(processing, rewrite)(rewritten, cfg)
    folded = canonical.fill_norms(rewritten, cfg)
    before, largest = log_probs(network(weights, cfg), tokens)
    now, _ = log_probs(network(folded, cfg), tokens)
    assert (before - now).abs().max() < close * largest
    processed, after = processing.process(weights, cfg)
    for name, tensor in rewritten.items():
        torch.testing.assert_close(processed[name], tensor, rtol=close, atol=close)
    assert after.normalization_type == "LNPre"


def test_the_plain_forward_pass_tells_architectures_apart() -> None:
    """Otherwise its agreement would say nothing."""
    weights, cfg, tokens = model("LN")
    for name in ("parallel", "gated with LN"):
        other = HookedTransformerConfig(**{**cfg.to_dict(), **ARCHITECTURES[name]})
        more = {key: torch.ones(shape, dtype=torch.float64) for key, shape in canonical.shapes(other).items()}
        assert distance(Plain(weights, cfg), Plain(more | weights, other), tokens) > 1e-3
