"""The workbench on SmolLM2: from a click to the painted change, beside a full forward pass for each click.

    python benchmarks/workbench.py [--clicks 200] [--many 2000] [--model NAME]

Random clicks on the map of the model, 24 tokens in each prompt, headless Chromium: a click switches a head or an MLP off, or back
on, so that up to a dozen are off at a time. Painted: two frames after the page has drawn the numbers, the next tokens and the map
of that click. The full forward pass is what each click would compute without kept streams: the whole network with the same
switches, in the same process, between the clicks. Needs Node and Chromium (`make ui` fetches the driver).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cutaway import loading
from cutaway.model.transformer import Transformer
from cutaway.runs import editing
from cutaway.workbench import serving

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 24
TEXT = "When Mary and John went to the old store on the corner of the street, John gave a small drink of cold water to the"
OTHER = "When Mary and John went to the old store on the corner of the street, Mary gave a small drink of cold water to the"
MEDIAN, NINETY_FIFTH, FIRST_PAGE, GROWTH = 0.200, 0.400, 2.0, 200e6


class Browser:
    """Headless Chromium, as the tests of figures have it."""

    def __init__(self) -> None:
        command = ["node", "browser.mjs", str(shutil.which("chromium") or shutil.which("google-chrome"))]
        self.process = subprocess.Popen(command, cwd=ROOT / "ui", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, command: str, **options: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"command": command, **options}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["answer"]


CLICK = """
(async ([x, y]) => {
  const area = document.querySelector("#map .ct-area");
  const box = area.getBoundingClientRect();
  const at = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true };
  const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const before = Number(document.documentElement.dataset.turn);
  const start = performance.now();
  area.dispatchEvent(new MouseEvent("click", at));
  while (Number(document.documentElement.dataset.turn) <= before) {
    if (performance.now() - start > 20000) return -1;
    await new Promise((done) => setTimeout(done, 1));
  }
  await frames();
  return performance.now() - start;
})(%s)
"""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def clicked(browser: Browser, draw: random.Random, rest: float, cells: tuple[int, int]) -> float:
    """A click on the middle of a random cell of the map; seconds until it is painted."""
    layers, rows = cells
    at = [(draw.randrange(layers) + 0.5) / layers, (draw.randrange(rows) + 0.5) / rows]
    spent = browser("evaluate", code=CLICK % json.dumps(at))
    if spent < 0:
        raise RuntimeError("a click was never painted")
    time.sleep(rest)
    return spent / 1000


def full_pass(made: serving.Workbench) -> float:
    """Seconds of a run of the whole network with the switches that are on."""
    session = made.bench.session
    made.bench.lanes.look.idle.wait()
    found = session.find(session.state, session.pair)
    start = time.perf_counter()
    with torch.no_grad(), editing.edited(session.model, found.edits):
        logits = session.model.last_logits(found.own.tokens)[:, 0]
    spent = time.perf_counter() - start
    assert torch.allclose(logits, found.now.logits(found.at), atol=1e-3 * float(logits.abs().max())), "other numbers"
    return spent


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--clicks", type=int, default=200)
    options.add_argument("--many", type=int, default=2000)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--rest", type=float, default=0.15, help="seconds between two clicks")
    given = options.parse_args()
    serving.needed()  # as `cutaway open` does, before it loads the model
    serving.leave_a_core()
    model = loading.from_pretrained(Transformer, given.model, device="cpu")
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made, _ = serving.prepare(model, given.model, folder=folder, port=8700)
        serving.start(made)
        ids = [model.tokens_and_mask(text, None, None)[0][0, :TOKENS].tolist() for text in (TEXT, OTHER)]
        prepared = time.perf_counter() - loaded
        browser = Browser()
        opened = time.perf_counter()
        browser("open", url=made.address, ready="html[data-turn]", width=1280, height=900)
        first = prepared + time.perf_counter() - opened
        session = made.bench.session
        session.set({"clean": ids[0], "corrupted": ids[1], "right": None, "wrong": None})
        made.bench.show()
        shown = f"Number(document.documentElement.dataset.turn) >= {session.turn} && !!document.querySelector('#map .ct-area')"
        browser("wait", code=shown)
        browser("click", selector='.wb-choice label:has-text("click switches off")')
        draw, cells = random.Random(0), (model.cfg.n_layers, model.cfg.n_heads + (not model.cfg.attn_only))
        for _ in range(5):
            clicked(browser, draw, given.rest, cells)
        spent, passes, threads = [], [], torch.get_num_threads()
        for number in range(given.clicks):
            if len(session.state.switches) >= 12:
                session.set({"switches": []})
                made.bench.show()
                browser("wait", code=f"Number(document.documentElement.dataset.turn) >= {session.turn}")
                made.bench.lanes.look.idle.wait()
            spent.append(clicked(browser, draw, given.rest, cells))
            if number % 10 == 0:
                passes.append(full_pass(made))
        kept = resident()
        heap = browser("memory")["heap"]
        for number in range(given.many):
            if number % 12 == 0:
                session.set({"switches": []})
                made.bench.show()
                browser("wait", code=f"Number(document.documentElement.dataset.turn) >= {session.turn}")
            clicked(browser, draw, 0.0, cells)
            if number % 100 == 99:
                heap_now = browser("memory")["heap"] / 1e6
                print(f"  {number + 1} clicks: {resident() / 1e6:.0f} MB here, {heap_now:.1f} MB in the page", flush=True)
        grown, heap_grown = resident() - kept, browser("memory")["heap"] - heap
        made.stop()
    spent.sort()
    median, high = statistics.median(spent), spent[int(0.95 * len(spent))]
    rows = [
        (f"click to painted, median of {len(spent)}", median, MEDIAN), ("click to painted, 95th percentile", high, NINETY_FIFTH),
        ("first page after the model is loaded", first, FIRST_PAGE),
    ]  # fmt: skip
    print(f"{given.model}, {TOKENS} tokens, {threads} threads, load {os.getloadavg()[0]:.1f}")
    for words, value, limit in rows:
        print(f"{words}: {value * 1000:.0f} ms (at most {limit * 1000:.0f}): {'holds' if value <= limit else 'MISSED'}")
    print(f"a full forward pass in its place: {statistics.median(passes) * 1000:.0f} ms, before anything is sent or painted")
    here = f"{grown / 1e6:+.0f} MB here (at most {GROWTH / 1e6:.0f})"
    print(f"memory over {given.many} clicks: {here}, {heap_grown / 1e6:+.1f} MB in the page")
    return int(any(value > limit for _, value, limit in rows) or grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
