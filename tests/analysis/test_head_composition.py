"""Composition and copying: the products written out, baselines, planted heads."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from cutaway.analysis.head_composition import composition, copying
from cutaway.analysis.weight_circuits import ov_circuit
from cutaway.errors import ShapeError, UnknownName
from tests.architectures import ALL, network


@pytest.mark.parametrize("name", ["attention only", "gpt2", "llama"])
def test_scores_are_norms_of_products(name: str) -> None:
    model: Any = network(name).requires_grad_(False)
    found = composition(model)
    OV, QK = model.W_V @ model.W_O, model.W_Q @ model.W_K.transpose(-2, -1)
    for first in range(4):
        for second in range(4):
            writes = OV[0, first]
            for mode, reads in (("Q", QK[1, second]), ("K", QK[1, second].T), ("V", OV[1, second])):
                expected = (writes @ reads).norm() / (writes.norm() * reads.norm())
                got = found.values.sel(mode=mode, earlier=f"0.{first}", later=f"1.{second}").item()
                assert got == pytest.approx(float(expected), rel=1e-4)
    assert int((~found.values.data.isnan()).sum()) == 3 * 16, "only pairs that follow each other have a score"


@pytest.mark.parametrize("stretch", [0.0, 2.0])
def test_heads_that_share_only_the_streams_large_directions_are_not_exceptional(stretch: float) -> None:
    """A planted null: heads drawn one by one, from weights that lie along the same few directions, as trained ones do."""
    model = network("attention only", n_layers=4, n_heads=8, d_model=48, d_head=6)
    draw = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=draw)).Q
    shape = turn * torch.exp(-stretch * torch.arange(48) / 10)
    with torch.no_grad():
        for block in model.blocks:
            for weight in (block.attn.W_Q, block.attn.W_K, block.attn.W_V):
                weight.copy_(shape @ torch.randn(weight.shape, generator=draw))
            block.attn.W_O.copy_(torch.randn(block.attn.W_O.shape, generator=draw) @ shape.T)
    found = composition(model)
    excess = found.excess.data[~found.excess.data.isnan()]
    assert float((excess > 2).double().mean()) < 0.08 and float((excess < -2).double().mean()) < 0.08
    assert abs(float(excess.mean())) < 0.5


def test_a_planted_pair_comes_out_on_top() -> None:
    model = network("attention only")
    with torch.no_grad():
        model.blocks[1].attn.W_K[2] = model.blocks[0].attn.W_O[1].T
    found = composition(model, "QK")
    assert found.top(1)[0][:3] == ("K", "0.1", "1.2")
    assert found.excess.sel(mode="K", earlier="0.1", later="1.2").item() > 5
    assert "0.1 → 1.2" in found.summary()
    assert found.figure().meta["panels"][1]["name"] == "K-composition"


def test_where_every_pair_composes_the_baseline_does_not() -> None:
    """A planted effect everywhere: a baseline that knew of the pairs would call all of it ordinary."""
    model = network("attention only", n_heads=4)
    with torch.no_grad():
        for head in range(4):
            model.blocks[0].attn.W_O[head] = model.blocks[0].attn.W_O[0]
            model.blocks[1].attn.W_K[head] = model.blocks[0].attn.W_O[0].T
    found = composition(model, "K")
    assert float(found.excess.data.nanmean()) > 1


def test_modes_must_be_known_and_layers_two() -> None:
    with pytest.raises(UnknownName, match="not 'QX'"):
        composition(network("gpt2"), "QX")
    with pytest.raises(ShapeError, match="needs two layers"):
        composition(network("gpt2", n_layers=1))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("gemma", "olmo-2")])
def test_copying_equals_the_eigenvalues_of_the_whole_matrix(name: str) -> None:
    model = network(name)
    found = copying(model)
    for head in ("0.1", "1.3"):
        eigenvalues = torch.linalg.eigvals(ov_circuit(model, head).data.double())
        expected = float(eigenvalues.real.sum() / eigenvalues.abs().sum())
        assert found.values.sel(head=head).item() == pytest.approx(expected, abs=1e-3)
        assert found.values.sel(head=head).item() == pytest.approx(ov_circuit(model, head).copying_score(), abs=1e-3)


def test_planted_copying() -> None:
    model = network("attention only", d_vocab=24)
    with torch.no_grad():
        model.embed.W_E.copy_(torch.eye(24))
        model.unembed.W_U.copy_(torch.eye(24))
        model.ln_final.w.fill_(1)
        model.blocks[0].ln1.w.fill_(1)
        model.blocks[0].attn.W_O[2] = model.blocks[0].attn.W_V[2].T
        model.blocks[0].attn.W_O[3] = -model.blocks[0].attn.W_V[3].T
    found = copying(model)
    assert found.values.sel(head="0.2").item() == pytest.approx(1, abs=1e-4)
    assert found.values.sel(head="0.3").item() == pytest.approx(-1, abs=1e-4)
    assert found.heads(0.9) == ["0.2"]
    assert abs(found.baseline) < 0.3 and found.spread > 0.05
    assert found.summary().splitlines()[1].startswith("copy most: 0.2 +1.00")
    named = re.findall(r"(\d\.\d) [+-]", "\n".join(found.summary().splitlines()[1:]))
    assert named and len(named) == len(set(named))  # none both among the most and among the least
    assert found.figure().view == "bars"


def test_two_vocabularies_have_no_copying() -> None:
    with pytest.raises(ShapeError, match="reads 13 tokens and answers 5"):
        copying(network("gpt2", d_vocab_out=5))
