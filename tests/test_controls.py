"""Controls are tested as hard as arithmetic: a planted null comes out null, a planted effect comes out.

Each law stands for a fault that once passed every other test; `benchmarks/mutants.py` plants them again.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cutaway import metrics
from cutaway.analysis import steering_effects
from cutaway.analysis.head_composition import copying
from cutaway.analysis.steering import contrast_vectors
from cutaway.circuits.attribution import edge_attribution
from cutaway.runs import edits
from cutaway.runs.editing import run
from cutaway.runs.generation import sample_logits
from cutaway.runs.sweep import sweep
from cutaway.tokens import CharTokenizer
from tests.architectures import network, some_tokens


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "gpt-j", "bidirectional"])
@pytest.mark.parametrize("examples", [[0, 1, 3], [1], [3, 0]])
def test_patches_from_minimal_pairs_equal_the_runs_one_by_one(name: str, examples: list[int]) -> None:
    """Rows of a pair that do not differ change nothing, and must not shift the rows that do."""
    model = network(name).requires_grad_(False)
    clean = some_tokens(4, 9)
    corrupted = clean.clone()
    corrupted[1, 4] = (corrupted[1, 4] + 1) % model.cfg.d_vocab
    corrupted[3, 7] = (corrupted[3, 7] + 2) % model.cfg.d_vocab
    _, cache = model.run_with_cache(corrupted)
    metric = metrics.logit_difference(torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8]))
    sites = [("resid_pre", 0), ("resid_pre", 1), ("z", 1), ("v", 0), ("resid_post", 1)]
    cells = [edits.patch(cache).at(site, examples=examples, **where) for site in sites for where in ({}, {"positions": [4, 7]})]
    found = sweep(model, clean, cells, metric, audit=0).values.data
    for cell, edit in enumerate(cells):
        alone = run(model, clean, edits=[edit], metric=metric).value
        assert torch.allclose(found[cell], alone, atol=2e-5), f"{edit.label}: {found[cell]} for {alone}"


def test_the_copying_baseline_knows_nothing_of_the_heads() -> None:
    """A planted effect: heads that copy score high, and random ones beside them still do not."""
    model: Any = network("attention only", d_vocab=24, normalization_type=None).requires_grad_(False)
    model.embed.W_E.copy_(torch.eye(24))
    model.unembed.W_U.copy_(torch.eye(24))
    for block in model.blocks:
        block.attn.W_O.copy_(block.attn.W_V.transpose(-2, -1))
    found = copying(model)
    assert float(found.values.data.min()) > 0.99 and abs(found.baseline) < 0.2


def test_edge_gradients_are_taken_from_the_corrupted_end_on() -> None:
    """One step of attribution is the gradient at the corrupted run: of the edges into the logits, by hand."""
    model: Any = network("gpt2").requires_grad_(False)
    clean, corrupted = some_tokens(2, 6, seed=1), some_tokens(2, 6, seed=2)
    metric = metrics.log_probability(torch.tensor([1, 2]))
    found = edge_attribution(model, clean, corrupted, metric, steps=1)
    _, now = model.run_with_cache(clean)
    _, base = model.run_with_cache(corrupted)
    end = base["resid_post", -1].clone().requires_grad_(True)
    with torch.enable_grad():
        metric(model.logits_of(end)).mean().backward()
    assert end.grad is not None
    parts = (now["mlp_out", 1] - base["mlp_out", 1]) * end.grad
    frame = found.values
    got = frame.sel(writer="1.mlp", reader="logits").data.mean()
    assert float(got) == pytest.approx(float(parts.sum()), rel=1e-4)


def prompts(model: Any, count: int) -> tuple[list[str], list[str]]:
    model.set_tokenizer(CharTokenizer([*"abcdefghijkl", "BOS"], bos_token="BOS", eos_token="BOS", pad_token="BOS"))
    draw = torch.Generator().manual_seed(0)
    words = ["".join("abcdefghijkl"[i] for i in torch.randint(12, (7,), generator=draw).tolist()) for _ in range(2 * count)]
    return [word[:6] + "a" for word in words[:count]], [word[:6] + "b" for word in words[count:]]


def test_shuffled_labels_are_shuffled() -> None:
    """A planted effect, two sets that differ by their last letter: with mixed labels hardly anything of it is left."""
    model: Any = network("gpt2").requires_grad_(False)
    positive, negative = prompts(model, 16)
    vectors = contrast_vectors(model, positive, negative, [1], position=-1)
    controls = [family[1].values[0] for family in steering_effects._shuffled(model, vectors, 12, 0)]
    own = vectors[1].values[0]
    shares = torch.stack([one @ own / own.square().sum() for one in controls]).abs()
    assert float(shares.mean()) < 0.35 and float(shares.max()) < 0.9
    assert len({round(float(one.norm()), 4) for one in controls}) > 6, "every shuffle is the same"


def test_of_noise_held_out_accuracy_is_a_coin() -> None:
    """A planted null: in many dimensions a prompt that is part of its own mean would always be told right."""
    draw = torch.Generator().manual_seed(0)
    found = [
        float(steering_effects.held_out_accuracy(*torch.randn(2, 1, 12, 400, generator=draw), folds=4, seed=seed))
        for seed in range(20)
    ]
    assert 0.35 < sum(found) / len(found) < 0.65
    apart = torch.randn(2, 1, 12, 400, generator=draw) + torch.tensor([1.0, -1.0])[:, None, None, None]
    assert float(steering_effects.held_out_accuracy(*apart, folds=4)) == 1


def test_a_frequency_penalty_grows_with_every_occurrence() -> None:
    logits, tokens = torch.zeros(40_000, 3), torch.tensor([[0, 0, 0, 1]]).expand(40_000, -1)
    torch.manual_seed(0)
    drawn = sample_logits(logits, freq_penalty=0.7, tokens=tokens)
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(share, (-0.7 * torch.tensor([3.0, 1.0, 0.0])).softmax(0), atol=0.01)


@pytest.mark.parametrize("cap", [0.5, 3.0])
def test_a_soft_cap_holds_in_every_layer_and_in_sweeps(cap: float) -> None:
    model: Any = network("gemma", attn_scores_soft_cap=cap, n_layers=3, attn_types=["local", "global", "local"], spread=1.0)
    model.requires_grad_(False)
    tokens = some_tokens(2, 8)
    _, cache = model.run_with_cache(tokens)
    for layer in range(3):
        scores = cache["attn_scores", layer]
        seen = scores[scores.isfinite()].abs()
        assert 0.5 * cap < float(seen.max()) <= cap
    metric = metrics.log_probability(torch.tensor([1, 2]))
    cells = [edits.scale(0.3).at(("resid_pre", layer), positions=[5]) for layer in range(3)]
    found = sweep(model, tokens, cells, metric, audit=0).values.data
    for cell, edit in enumerate(cells):
        assert torch.allclose(found[cell], run(model, tokens, edits=[edit], metric=metric).value, atol=1e-4)


def test_labels_at_padding_and_before_it_do_not_count() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert metrics.loss(tokens, mask=mask).wanted(2, 4).tolist() == [[True, True, True, False], [True, False, False, False]]
    left = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    assert metrics.loss(tokens, mask=left).wanted(2, 4).tolist() == [[True, True, True, False], [False, False, True, False]]
