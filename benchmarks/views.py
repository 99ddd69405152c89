"""Attention patterns as HTML: sizes, time until painted, hover and browser memory, beside CircuitsVis 1.43.3.

    python benchmarks/views.py [--peer PYTHON] [--sizes 64 256 1024] [--patience 60] [--record]

Both sides draw the same 12 heads into a page with everything inside, opened by the same Chromium with no network.
Painted: when the first canvas has been on the screen for two frames, since the page began to load. Memory: what the
process that draws the page keeps to itself, beyond an empty page. Needs Node and Chromium (`make ui` fetches the driver).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import beside

ROOT = Path(__file__).resolve().parents[1]
HEADS = 12
HOVER_LIMIT = 8  # milliseconds
MEMORY_LIMIT = 150  # MB, at the largest size
LIMITS = {64: (0.15, 0.3), 1024: (6.0, 1.5)}  # tokens → MB of HTML, seconds until painted

DRAW = {
    "ours": (
        "from cutaway import view; html = view.attention_patterns([f't{i}' for i in range(len(a[0]))], a).html()",
        ".ct-cells",
    ),
    "peer": (
        "import circuitsvis as cv; tokens = [f't{i}' for i in range(len(a[0]))]; "
        "shown = cv.attention.attention_patterns(tokens=tokens, attention=a); "
        "html = '<!doctype html><meta charset=utf-8><body>' + shown.local_src",
        "canvas",
    ),
}


def patterns(n: int) -> np.ndarray:
    """Random causal attention, [head, dest, src]."""
    weights = np.random.default_rng(0).gamma(0.2, size=(HEADS, n, n)).astype(np.float32)
    weights = np.tril(weights) + 1e-6 * np.eye(n, dtype=np.float32)
    return weights / weights.sum(-1, keepdims=True)


def private(pid: int) -> int:
    """Bytes that a process shares with nobody."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def write(python: str, side: str, array: Path, page: Path) -> tuple[float, float]:
    """Make one page in a process of its own; MB, and seconds of the call alone."""
    code = (
        f"import sys, time, numpy as np; a = np.load(sys.argv[1]); start = time.perf_counter(); {DRAW[side][0]}; "
        "spent = time.perf_counter() - start; open(sys.argv[2], 'w', encoding='utf-8').write(html); print(spent)"
    )
    done = subprocess.run([python, "-c", code, str(array), str(page)], capture_output=True, text=True, check=True)
    return page.stat().st_size / 1e6, float(done.stdout.split()[-1])


def measure(page: Path, side: str, rounds: int, patience: float) -> dict[str, float | None]:
    """Open a page `rounds` times in fresh browsers."""
    times: list[float] = []
    hovers: list[float] = []
    memory = 0.0
    for _ in range(rounds):
        browser = open_browser()
        browser("open", file=str(empty_page(page.parent)), ready=None)
        before = max(map(private, browser("memory")["renderers"]))
        painted = browser("painted", file=str(page), within=DRAW[side][1], timeout=1000 * patience)
        if painted is None:
            browser.process.kill()
            return {"painted": None, "hover": None, "memory": None}
        times.append(painted / 1000)
        if side == "ours":
            hovers += browser("wander", selector=".ct-area", steps=60)[5:]
        memory = max(memory, (max(map(private, browser("memory")["renderers"])) - before) / 1e6)
        browser.close()
    return {
        "painted": statistics.median(times),
        "hover": statistics.median(hovers) if hovers else None,
        "memory": memory,
    }


def empty_page(folder: Path) -> Path:
    file = folder / "empty.html"
    file.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    return file


def open_browser() -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "view"))
    from view_browser import Browser, missing

    if missing():
        print(f"there is no browser to measure in: {missing()}")
        raise SystemExit(0)
    return Browser()


def said(value: float | None, unit: str, digits: int = 2) -> str:
    return "—" if value is None else f"{value:.{digits}f} {unit}"


def run(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The table, and the targets that were missed."""
    lines = ["| 12 heads × | side | HTML | made in | painted after | hover | memory |", "|---|---|---|---|---|---|---|"]
    missed = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for n in options.sizes:
            np.save(folder / "a.npy", patterns(n))
            for side, python in (("ours", sys.executable), ("peer", options.peer)):
                if not python:
                    continue
                rounds = options.rounds if side == "ours" else 1
                page = folder / f"{side}.html"
                size, made = write(python, side, folder / "a.npy", page)
                found = measure(page, side, rounds, options.patience)
                painted = said(found["painted"], "s") if found["painted"] is not None else f"not in {options.patience:.0f} s"
                name = "cutaway" if side == "ours" else "CircuitsVis 1.43.3"
                row = [f"{n} tokens", name, said(size, "MB"), said(made, "s"), painted, said(found["hover"], "ms", 1)]
                lines.append("| " + " | ".join([*row, said(found["memory"], "MB", 0)]) + " |")
                print(lines[-1], flush=True)
                if side == "ours":
                    missed += targets(n, size, found)
    return "\n".join(lines), missed


def targets(n: int, size: float, found: dict[str, float | None]) -> list[str]:
    """What was promised and not kept."""
    most_mb, most_s = LIMITS.get(n, (float("inf"), float("inf")))
    checks = [
        (size <= most_mb, f"{n} tokens: {size:.2f} MB, more than {most_mb}"),
        ((found["painted"] or 1e9) < most_s, f"{n} tokens: painted after {found['painted']} s, not within {most_s}"),
        ((found["hover"] or 0) < HOVER_LIMIT, f"{n} tokens: {found['hover']} ms a hover, not within {HOVER_LIMIT}"),
        ((found["memory"] or 0) < MEMORY_LIMIT, f"{n} tokens: {found['memory']} MB of browser memory, more than {MEMORY_LIMIT}"),
    ]
    return [words for kept, words in checks if not kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=os.environ.get("CUTAWAY_PEER_PYTHON"), help="a Python that has CircuitsVis")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5, help="how often our page is opened")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a page")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    if options.peer and not shutil.which(options.peer):
        parser.error(f"{options.peer} is not there; `make bench` installs it")
    start = time.time()
    table, missed = run(options)
    if options.record:
        beside.record("views", f"## Figures (`benchmarks/views.py`)\n\n{table}\n")
    print(f"{time.time() - start:.0f} s; " + ("; ".join(missed) if missed else "all targets kept"))
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
