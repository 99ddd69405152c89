"""Ranks: two processes that torchrun starts end with the bytes of one process, and each does its share."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TEXTS = [f"line {number} of what the ranks read, and {number * 7} words more" for number in range(40)]
SCRIPT = """
import os
import sys
from pathlib import Path
from cutaway import ablate, across, edits, loading, metrics, sweep
from cutaway.collect import collect
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts

folder, executor = Path(sys.argv[1]), sys.argv[2]
done = collect("attn-only-2l", folder.parent / "corpus.jsonl", ["resid_post0"], folder / "c", chunk=2**9, executor=executor)
model = loading.from_pretrained(Transformer, "attn-only-2l")
tokens = model.tokens_and_mask("the house of a sailor stood at the end", None, None)[0]
cells = [edits.Edit(("z", n % 2), edits.zero(), heads=n // 2) for n in range(16)]
found = sweep(model, tokens, cells, metrics.loss(tokens), results=folder / "s", executor=executor, memory=300_000)
prompts = {str(n): Prompts.of_texts(model, ["the house of a sailor"[n:]]) for n in range(3)}
asked = across(ablate, model, prompts, results=folder / "a", kinds=["zero"], executor=executor)
said = done.digest, found.values.data.sum().item(), asked["1"].values.data.nansum().item(), len(asked.answers)
(folder.parent / f"said-{executor}-{os.environ.get('RANK', 0)}").write_text(str(said))
"""


def tree(folder: Path) -> dict[str, str]:
    files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
    return {one.relative_to(folder).as_posix(): hashlib.md5(one.read_bytes()).hexdigest() for one in files}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_two_ranks_of_torchrun_end_with_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path / "ranks"), "ranks"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "whole"), "local"])
    runpy.run_path(str(script))
    said = (tmp_path / "said-local-0").read_text(encoding="utf-8")
    assert [(tmp_path / f"said-ranks-{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == [said, said]  # both know all
    whole = tree(tmp_path / "whole")
    assert tree(tmp_path / "ranks") == whole and len(whole) > 20
