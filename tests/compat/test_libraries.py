"""Libraries of the field, in their style: modules at hook points, scores from plain hooks, replacement models; ways in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from cutaway import compat
from cutaway.circuits.attribution import edge_attribution
from cutaway.cli import app
from cutaway.errors import UnsupportedArchitecture
from cutaway.hooked_transformer import HookedTransformer
from cutaway.model.hook_points import HookPoint
from cutaway.model.hooked_root import HookedRootModule
from cutaway.runs import metrics
from cutaway.sources import hub, toys
from cutaway.sources.short_names import ENCODERS, SHORT_NAMES
from tests.architectures import network, some_tokens

# As SAELens: a dictionary stands at a hook point, with hook points of its own.


class Dictionary(HookedRootModule):
    """A sparse autoencoder, with or without the error that makes it exact."""

    def __init__(self, d_in: int, d_sae: int, *, with_error: bool):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.W_enc = nn.Parameter(torch.randn(d_in, d_sae, generator=draw) / d_in**0.5)
        self.W_dec = nn.Parameter(torch.randn(d_sae, d_in, generator=draw) / d_sae**0.5)
        self.with_error = with_error
        self.hook_sae_input, self.hook_sae_acts_post, self.hook_sae_output = HookPoint(), HookPoint(), HookPoint()
        self.setup()

    def forward(self, x: Tensor) -> Tensor:
        x = self.hook_sae_input(x)
        acts = self.hook_sae_acts_post((x.flatten(2) @ self.W_enc).relu())
        out = (acts @ self.W_dec).view_as(x)
        return self.hook_sae_output(x if self.with_error else out)


@contextmanager
def standing_at(model: HookedTransformer, site: str, module: nn.Module) -> Iterator[None]:
    parent, _, last = site.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, last)
    setattr(owner, last, module)
    model.setup()
    try:
        yield
    finally:
        setattr(owner, last, before)
        model.setup()


@pytest.mark.parametrize("site", ["hook_resid_pre", "attn.hook_z", "hook_mlp_out"])
def test_a_dictionary_at_a_site(site: str) -> None:
    model, tokens = network("gpt2"), some_tokens()
    clean, name = model(tokens), f"blocks.1.{site}"
    _, cache = model.run_with_cache(tokens)
    for with_error in (True, False):
        sae = Dictionary(24, 40, with_error=with_error)
        with standing_at(model, name, sae):
            out, inside = model.run_with_cache(tokens)
            assert torch.equal(inside[f"{name}.hook_sae_input"], cache[name])
            acts = inside[f"{name}.hook_sae_acts_post"]
            torch.testing.assert_close(acts, (cache[name].flatten(2) @ sae.W_enc).relu())
            assert torch.allclose(out, clean, atol=1e-4) == with_error
            silenced = model.run_with_hooks(
                tokens, fwd_hooks=[(f"{name}.hook_sae_acts_post", lambda x, hook: torch.zeros_like(x))]
            )
            assert torch.allclose(silenced, out, atol=1e-4) == with_error
            out.sum().backward()
            assert with_error or sae.W_dec.grad is not None
        model.zero_grad()
    assert torch.equal(model(tokens), clean) and f"{name}.hook_sae_input" not in model.hook_dict


# As EAP: scores of edges from activations of one run and gradients of another, by plain hooks.


def test_scores_of_edges_by_plain_hooks_are_those_of_edge_attribution() -> None:
    model, clean, corrupt = network("gpt2"), some_tokens(seed=1), some_tokens(seed=2)
    writers = [f"blocks.{layer}.{site}" for layer in (0, 1) for site in ("attn.hook_result", "hook_mlp_out")]
    readers = {f"blocks.{layer}.hook_mlp_in": layer for layer in (0, 1)}
    differences: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def note(sign: int) -> Any:
        def hook(x: Tensor, hook: HookPoint) -> None:
            differences[hook.name] = differences.get(hook.name, 0) + sign * x.detach()

        return hook

    model.run_with_hooks(clean, fwd_hooks=[(name, note(-1)) for name in writers])
    with model.hooks(
        fwd_hooks=[(name, note(1)) for name in writers],
        bwd_hooks=[(name, lambda x, hook: gradients.__setitem__(hook.name, x.clone())) for name in readers],
    ):
        logits = model(corrupt)[:, -1]
        (logits[:, 3] - logits[:, 5]).sum().backward()
    scores = edge_attribution(model, clean, corrupt, metrics.logit_difference(3, 5), steps=1)
    by_hand = (differences["blocks.0.attn.hook_result"][:, :, 2] * gradients["blocks.1.hook_mlp_in"]).sum((-1, -2)).mean()
    writer, reader = scores.values.names("writer").index("0.2"), scores.values.names("reader").index("1.mlp")
    torch.testing.assert_close(scores.values.data[writer, reader].abs(), by_hand.abs(), rtol=1e-4, atol=1e-5)


# As circuit-tracer: MLPs are replaced by transcoders, what they are wrong by is held, and gradients are taken by hooks.


class Transcoder(nn.Module):
    """Stands in an MLP's place, and keeps the old one for its error."""

    def __init__(self, old: nn.Module, d_model: int):
        super().__init__()
        self.old, self.hook_in, self.hook_features, self.hook_out = old, HookPoint(), HookPoint(), HookPoint()
        self.W_enc = nn.Parameter(torch.randn(d_model, 50, generator=torch.Generator().manual_seed(3)))
        self.W_dec = nn.Parameter(torch.randn(50, d_model, generator=torch.Generator().manual_seed(4)) / 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hook_in(x)
        features = (x @ self.W_enc).relu()
        error = (self.old(x) - features @ self.W_dec).detach()
        return self.hook_out(self.hook_features(features) @ self.W_dec + error)


def test_a_replacement_model_is_exact_and_its_edges_are_gradients() -> None:
    model, tokens = network("gpt2"), some_tokens(batch=1)
    clean = model(tokens)
    for block in model.blocks:
        block.mlp = Transcoder(block.mlp, 24)
    model.setup()
    torch.testing.assert_close(model(tokens), clean)
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: HookPoint) -> None:
        x.requires_grad_(True)
        kept[hook.name] = x

    sites = [f"blocks.{layer}.mlp.hook_{part}" for layer in (0, 1) for part in ("in", "features", "out")]
    model.run_with_hooks(tokens, fwd_hooks=[(site, keep) for site in sites])
    read = kept["blocks.1.mlp.hook_in"][0, -1] @ model.blocks[1].mlp.W_enc[:, 7]
    (edges,) = torch.autograd.grad(read, kept["blocks.0.mlp.hook_features"])
    assert edges.abs().max() > 0
    step = 1e-2

    def nudge(x: Tensor, hook: HookPoint) -> None:
        x[0, -1, 4] += step

    _, before = model.run_with_cache(tokens)
    with model.hooks([("blocks.0.mlp.hook_features", nudge)]):
        _, after = model.run_with_cache(tokens)
    moved = ((after["blocks.1.mlp.hook_in"] - before["blocks.1.mlp.hook_in"])[0, -1] @ model.blocks[1].mlp.W_enc[:, 7]).item()
    assert moved == pytest.approx(edges[0, -1, 4].item() * step, rel=0.05, abs=1e-4)


# Names.


def test_short_names_mean_what_they_mean_in_the_dialect(shared: Path) -> None:
    theirs = json.loads((shared / "data" / "short_names.json").read_text())
    wrong = {name: hub.official(name) for name, repo in theirs.items() if hub.official(name) != repo}
    assert not wrong


def test_names_of_the_table() -> None:
    assert len(SHORT_NAMES) > 380 and all(hub.official(name) == repo for name, repo in SHORT_NAMES.items())
    assert (
        hub.official("othello-gpt") == "Baidicoot/Othello-GPT-Transformer-Lens" and hub.official("gptj") == "EleutherAI/gpt-j-6B"
    )
    assert ENCODERS
    for name in ENCODERS:
        with pytest.raises(UnsupportedArchitecture, match="an encoder"):
            hub.read(name)


def test_a_short_name_of_the_dialect_is_not_our_toy_while_it_is_installed() -> None:
    assert toys.is_bundled("attn-only-2l") and toys.is_bundled("cutaway-attn-only-2l")
    compat.install()
    try:
        assert not toys.is_bundled("attn-only-2l") and "cutaway-attn-only-2l" in toys.names()
        assert toys.find("cutaway-attn-only-2l").config.n_layers == 2
    finally:
        compat.uninstall()
    assert "attn-only-2l" in toys.names() and not toys.is_bundled("cutaway-attn-only-3l")


def test_a_layer_may_be_a_tensor_of_no_dimension() -> None:
    model = network("gpt2")
    _, cache = model.run_with_cache(some_tokens())
    one = torch.tensor(1)
    assert torch.equal(cache["pattern", one], cache["pattern", 1]) and torch.equal(cache["attn", -one], cache["pattern", 1])
    cache.stack_head_results(2)
    assert cache["result", one].shape == (3, 9, 4, 24)


def test_a_rewrite_that_is_called_by_name_does_what_it_says() -> None:
    model = network("llama")  # RMSNorm takes no mean out, so the automatic rewriting leaves these weights alone
    state = model.center_writing_weights(model.state_dict())
    assert state["blocks.0.attn.W_O"].mean(-1).abs().max() < 1e-6 < model.W_O.mean(-1).abs().max()


# Ways in.


def test_a_script_runs_with_the_aliases(tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text("import sys, transformer_lens as tl\nprint(tl.HookedTransformer.__module__, sys.argv[1:])\nsys.exit(3)\n")
    ran = subprocess.run([sys.executable, "-m", "cutaway.cli", "run", str(script), "a", "--b"], capture_output=True, text=True)
    assert ran.returncode == 3 and ran.stdout.strip() == "cutaway.hooked_transformer ['a', '--b']", ran.stderr


def test_the_stand_in_satisfies_and_hands_over(tmp_path: Path) -> None:
    here = ["--target", str(tmp_path)]
    run = CliRunner().invoke
    assert run(app, ["stand-in", "install", *here]).exit_code == 0
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import importlib.metadata as m, transformer_lens, cutaway\n"
        "from transformer_lens.hook_points import HookPoint\n"
        "assert transformer_lens.HookedTransformer is cutaway.HookedTransformer and HookPoint is cutaway.HookPoint\n"
        "print(m.version('transformer-lens'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "2.18.0+cutaway", ran.stderr
    assert run(app, ["stand-in", "install", *here]).exit_code == 0  # again
    assert run(app, ["stand-in", "remove", *here]).exit_code == 0
    assert not list(tmp_path.iterdir()) and run(app, ["stand-in", "remove", *here]).exit_code == 2


def test_no_stand_in_beside_the_real_package(tmp_path: Path) -> None:
    info = tmp_path / "transformer_lens-2.18.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer-lens\nVersion: 2.18.0\n")
    ran = CliRunner().invoke(app, ["stand-in", "install", "--target", str(tmp_path)])
    assert ran.exit_code == 2 and "TransformerLens 2.18.0 itself is installed" in ran.output
    assert CliRunner().invoke(app, ["stand-in", "remove", "--target", str(tmp_path)]).exit_code == 2
