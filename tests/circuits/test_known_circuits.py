"""Circuits whose truth is known: programs that we compile, with norms and without, and one that was compiled otherwise."""

from __future__ import annotations

import pytest
import torch

from cutaway import programs
from cutaway.circuits.circuit import Circuit
from cutaway.circuits.effects import edge_effects
from cutaway.circuits.graph import Graph
from cutaway.circuits.measuring import run_circuit
from cutaway.circuits.scoring import recovery
from cutaway.config import HookedTransformerConfig
from cutaway.model.transformer import Transformer
from cutaway.programs.compiler import compile_program
from cutaway.runs import metrics
from tests.programs.inputs import rows_of

ABLATIONS = ("resample", "mean", "zero")


@pytest.mark.parametrize(
    ("ablation", "norm"), [*((one, None) for one in ABLATIONS), *((one, "LN") for one in ABLATIONS), ("zero", "RMS")]
)
@pytest.mark.parametrize("name", programs.names())
def test_compiled_circuits_are_found(name: str, ablation: str, norm: str | None) -> None:
    compiled = compile_program(programs.find(name), norm=norm)
    graph = Graph(compiled.model.cfg)
    clean, corrupted = (rows_of(compiled.program, seed) for seed in (0, 1))
    effects = edge_effects(compiled.model, clean, corrupted, metrics.kl(None), ablation=ablation)
    truth = Circuit.of(compiled.model, compiled.edges).edges
    found = recovery(graph, effects.values.data, truth, effects.unseen)
    assert found.edges == 1.0 or torch.equal(truth, graph.mask)  # one program is all edges that there are
    if ablation != "zero" or norm is None:  # without the constant of a norm nothing is as it was
        assert not found.unseen or ablation != "zero"
        needed = truth & ~effects.unseen  # what is left out changes nothing that its readers write, and so can go
        logits = run_circuit(compiled.model, clean, corrupted, needed, ablation=ablation)
        torch.testing.assert_close(logits, compiled.model(clean), atol=2e-3, rtol=0)


@pytest.mark.parametrize("norm", [None, "LN"])
def test_the_true_circuit_alone_computes_the_program(norm: str | None) -> None:
    for name in programs.names():
        compiled = compile_program(programs.find(name), norm=norm)
        clean, corrupted = (rows_of(compiled.program, seed) for seed in (0, 1))
        circuit = Circuit.of(compiled.model, compiled.edges)
        logits = circuit.logits(compiled.model, clean, corrupted)
        torch.testing.assert_close(logits, compiled.model(clean), atol=1e-4 if norm is None else 2e-3, rtol=0)


ONE, BOS, X, Y, IS_X, OUT, FIRST = range(7)  # dimensions of the stream; positions from FIRST on
LENGTH = 6
TRUE = {
    ("embed", "0.mlp"), ("0.mlp", "1.0.v"), ("1.0", "logits"), ("pos_embed", "1.0.q"), ("pos_embed", "1.0.k"), ("embed", "1.0.q"),
    ("embed", "1.0.k"),
}  # fmt: skip


def share_of_x() -> Transformer:
    """The share of x so far, as other compilers write it: bidirectional, ReLU, no norm, a constant beside each token's one-hot,
    no position for the first token, which a head falls back to, an idle head, and one number as the output."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=FIRST + LENGTH, n_ctx=LENGTH, d_head=LENGTH + 1, n_heads=1, d_vocab=3, d_vocab_out=1, d_mlp=1,
        act_fn="relu", normalization_type=None, attention_dir="bidirectional", use_attn_scale=False, init_weights=False,
        device="cpu", default_prepend_bos=False,
    )  # fmt: skip
    model = Transformer(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, ONE] = 1
        model.embed.W_E[range(3), [BOS, X, Y]] = 1
        model.pos_embed.W_pos[range(1, LENGTH), range(FIRST + 1, FIRST + LENGTH)] = 1
        first, attn = model.blocks[0].mlp, model.blocks[1].attn
        first.W_in[X, 0], first.W_out[0, IS_X] = 1, 1
        for q in range(1, LENGTH):
            attn.W_Q[0, FIRST + q, q] = 100
            attn.W_K[0, FIRST + 1 : FIRST + q + 1, q] = 1  # up to itself
        attn.W_Q[0, ONE, LENGTH], attn.W_K[0, BOS, LENGTH] = 50, 1
        attn.W_V[0, IS_X, 0], attn.W_O[0, 0, OUT] = 1, 1
        model.unembed.W_U[OUT, 0] = 1
    return model


@pytest.mark.parametrize(("ablation", "unseen"), [("resample", 4), ("mean", 4), ("zero", 0)])
def test_circuits_of_another_compiler_are_found(ablation: str, unseen: int) -> None:
    """Constants are the same in both runs although their writer is not: such edges are told apart by what readers write."""
    model, draw = share_of_x(), torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(1, 3, (2, 12, LENGTH), generator=draw)
    clean[:, 0] = corrupted[:, 0] = 0
    whole = model(clean)
    counted = (clean[:, 1:] == 1).cumsum(1) / torch.arange(1, LENGTH)
    torch.testing.assert_close(whole[:, 1:, 0], counted, atol=1e-5, rtol=0)

    def distance(logits: torch.Tensor) -> torch.Tensor:
        return (logits - whole).square().sum((1, 2))

    effects = edge_effects(model, clean, corrupted, distance, ablation=ablation)
    truth = Circuit.of(model, TRUE).edges
    found = recovery(Graph(model.cfg), effects.values.data, truth, effects.unseen)
    assert (found.edges, found.nodes, len(found.unseen)) == (1.0, 1.0, unseen)
    needed = truth & ~effects.unseen
    torch.testing.assert_close(run_circuit(model, clean, corrupted, needed, ablation=ablation), whole, atol=1e-5, rtol=0)


def test_where_no_edge_can_be_seen_there_is_no_area() -> None:
    model = share_of_x()
    clean, corrupted = (torch.tensor([[0, 1, 2, 1, 2, last]] * 4) for last in (1, 2))
    effects = edge_effects(model, clean, corrupted, metrics.log_probability([0] * 4))
    truth = Circuit.of(model, TRUE).edges
    found = recovery(Graph(model.cfg), effects.values.data, truth, truth)
    assert found.edges != found.edges and len(found.unseen) == len(TRUE) and "cannot show" in effects.summary()
