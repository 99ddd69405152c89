"""Planted faults: each is a change to a copy of the package that the tests nearest to it must notice.

    python benchmarks/mutants.py [WORD…]      all of them, or those whose name holds a word

A fault that survives means that a control is not tested; one whose text is not there any more has to be written anew.
Exit code 1 where either happens. The first ones survived every test of version 0.1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Fault:
    """A change of one file, and the tests that must fail for it: a file, and the words in their names (as pytest's -k has it)."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    only: str


CONTROLS, UNEQUAL, INTERVALS = "tests/test_controls.py", "tests/test_unequal_texts.py", "tests/runs/test_intervals.py"
METRICS, MEASURES, RESULTS = "runs/metrics.py", "runs/measures.py", "runs/intervals.py"
ENTER, REGIONS, SWEEPS = "runs/sweep/entering.py", "runs/sweep/regions.py", "tests/runs/test_sweep.py"
EFFECTS, COMPOSITION = "analysis/steering_effects.py", "analysis/head_composition.py"

FAULTS = [
    Fault("a padding target counts among next-token labels", METRICS, "        following = following.masked_fill(~(mask & mask.roll(-1, 1)), -1)",
          "        following = following.masked_fill(~mask.bool(), -1)", CONTROLS, "labels_at_padding"),
    Fault("the baseline of copying is made of the model's own weights", COMPOSITION,
          "random.append(_copying(model, l, between, *noise))", "random.append(_copying(model, l, between, W_V, W_O))", CONTROLS, "copying"),
    Fault("edge gradients are taken at the clean end", "circuits/attribution.py",
          "sums.add(begin + step / steps * (end - begin)", "sums.add(begin + (step + 1) / steps * (end - begin)",
          CONTROLS, "edge_gradients"),
    Fault("shuffled labels are not shuffled", EFFECTS, "        order = torch.randperm(pooled.shape[1], generator=draw)",
          "        order = torch.arange(pooled.shape[1])", CONTROLS, "shuffled"),
    Fault("every shuffle of labels is the same", EFFECTS, "        order = torch.randperm(pooled.shape[1], generator=draw)",
          "        order = torch.randperm(pooled.shape[1], generator=torch.Generator().manual_seed(1))", CONTROLS, "shuffled"),
    Fault("held-out prompts are in the mean", EFFECTS, "kept = [x[:, group.to(x.device) != fold].mean(1)",
          "kept = [x[:, group.to(x.device) >= -1].mean(1)", CONTROLS, "held_out"),
    Fault("a frequency penalty ignores counts", "runs/generation.py", "        logits = logits - freq_penalty * counts",
          "        logits = logits - freq_penalty * (counts > 0)", CONTROLS, "frequency"),
    Fault("a frequency penalty counts padding", "runs/generation.py",
          "counted = (torch.ones_like(tokens) if mask is None else mask).to(logits)",
          "counted = torch.ones_like(tokens).to(logits)", "tests/runs/test_generation.py", "frequency"),
    Fault("a soft cap is ignored in the last layer", "model/attention.py", "        if self.cfg.attn_scores_soft_cap > 0:",
          "        if self.cfg.attn_scores_soft_cap > 0 and self.layer_id != self.cfg.n_layers - 1:", CONTROLS, "soft_cap"),
    Fault("resampling may give an example its own activations", "runs/random_numbers.py",
          "    order[around] = around.roll(-1)", "    order[:] = around", "tests/runs/test_edits.py", "own"),
    Fault("composition is compared with the pairs themselves", COMPOSITION,
          "(draws, len(self.directions)), generator=self.generator).to(self.directions) * 2 - 1",
          "(draws, len(self.directions)), generator=self.generator).to(self.directions) * 0 + 1",
          "tests/analysis/test_head_composition.py", "every_pair"),
    Fault("composition is compared with isotropic heads", COMPOSITION,
          "flipped = (writers.B[earlier] @ self.directions * sign[:, None]) @ self.directions.T",
          "flipped = torch.randn(writers.B[earlier].shape, generator=self.generator)",
          "tests/analysis/test_head_composition.py", "share_only"),
    Fault("a metric at -1 reads the last column", MEASURES, "columns = torch.where(columns < 0, ends[:, None] + columns, columns)",
          "columns = torch.where(columns < 0, length + columns, columns)", UNEQUAL, "difference"),
    Fault("a metric over all positions reads padding", MEASURES, "return _where(positions, batch, length) & real",
          "return _where(positions, batch, length)", UNEQUAL, "rank or probability"),
    Fault("the label behind the last token counts", MEASURES, "labels.masked_fill(~real_there | behind, -1)",
          "labels.masked_fill(~real_there, -1)", UNEQUAL, "loss"),
    Fault("the loss counts padding on the right", "model/transformer.py",
          "        return self._finished(resid, return_type, tokens, padding, loss_per_token)",
          "        return self._finished(resid, return_type, tokens, mask, loss_per_token)", UNEQUAL, "loss_of_a_batch"),
    Fault("analyses forget the padding of tokens", "analysis/shared.py", "    real = None if mask is None else mask.bool()\n",
          "    real = None\n", UNEQUAL, "counts_the_real"),
    Fault("generation goes on behind the padding", "runs/generation.py",
          "    if padding is not None and not bool(padding[:, -1].all()):", "    if False:", UNEQUAL, "generation"),
    Fault("intervals are those of many examples", RESULTS, "t_quantile(1 - tail, number - 1)", "t_quantile(1 - tail, 1000)", INTERVALS, "cover"),
    Fault("tails are shared the wrong way round", RESULTS, "right = apart.pow(3).sum(0) > 0", "right = apart.pow(3).sum(0) < 0", INTERVALS, "cover"),
    Fault("yes and no get the interval of numbers", RESULTS, "        low, high = _shares(x, known, low, high)\n", "", INTERVALS, "shares_of_few"),
    Fault("a ratio's interval forgets that its parts go together", RESULTS, "middle = mean_a * mean_b - t**2 * both",
          "middle = mean_a * mean_b", INTERVALS, "both_parts"),
    Fault("the best layer depends on the sign", EFFECTS, "        return (ordered[..., -1] - ordered[..., 0]).abs()",
          "        return ordered[..., -1] - ordered[..., 0]", "tests/analysis/test_steering.py", "order_or_sign"),
    Fault("a file is written in place", "writing.py", "            os.replace(draft, file)", "            file.write_bytes(draft.read_bytes())",
          "tests/test_writing.py", "reader_of_the_old"),
    Fault("drafts of the dead stay", "writing.py", "            os.unlink(entry.path)\n", "            pass\n", "tests/test_writing.py", "killed"),
    Fault("drafts of the living go", "writing.py", "            fcntl.flock(draft, fcntl.LOCK_EX | fcntl.LOCK_NB)\n", "",
          "tests/test_writing.py", "living"),
    Fault("a record that was edited is believed", "records.py", "not in (None, _digest(about, tensors))", "not in (None, about.get('digest'))",
          "tests/fuzz/test_readers.py", "edited"),
    Fault("an edit of some examples writes other rows", ENTER, "if examples is None else examples[by_example]\n",
          "\n", CONTROLS, "minimal_pairs"),
    Fault("what attends to a change is left out", REGIONS, "self._spread(region) if spread is FROM_KEYS else region",
          "region", SWEEPS, "full_forward_pass and gpt2"),
    Fault("the last layer computes what nobody reads", REGIONS, "        return self._needed.get(name) if layer == self.cfg.n_layers - 1 else None",
          "        return None", SWEEPS, "plan_is_data"),
    Fault("a plan forgets the heads' results before a norm", REGIONS, "total += cost * region.tokens * (name == HEADS_WRITE)",
          "pass", SWEEPS, "torch_counts and gemma"),
    Fault("an audit never stops", "runs/sweep/sweeping.py", "        if difference > max(", "        if False and difference > max(", SWEEPS,
          "planted_fault"),
]  # fmt: skip


def survives(fault: Fault) -> bool:
    """Plant a fault in a copy, and run its tests."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "cutaway"
        shutil.copytree(ROOT / "src" / "cutaway", copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / fault.file
        text = path.read_text(encoding="utf-8")
        if fault.old not in text:
            raise LookupError(f"{fault.name}: {fault.file} does not hold {fault.old.strip()!r} any more")
        path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", fault.tests, "-k", fault.only]
        environment = os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode == 0


def main() -> int:
    """Try each fault; how many are left alive."""
    words, left = sys.argv[1:], 0
    for fault in FAULTS:
        if words and not any(word in fault.name for word in words):
            continue
        started = time.monotonic()
        try:
            verdict = "SURVIVES" if survives(fault) else "found"
        except LookupError as error:
            verdict = f"CANNOT BE PLANTED: {error}"
        left += verdict != "found"
        print(f"{verdict:9} {time.monotonic() - started:5.0f} s  {fault.name}", flush=True)
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
