"""What `explain` gives back, and what it refuses: random programs as networks, published subjects, and networks without a story.

    python benchmarks/explain.py [--programs 100] [--subjects FOLDER]

Prints a table for RESULTS.md. Programs come back if they answer alike on every input up to length 6. Of random weights, of
shuffled weights and of the first steps of a training none may be explained.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cutaway import HookedTransformer, programs
from cutaway.explain import explain
from cutaway.explain.explaining import with_short
from cutaway.explain.fitting import fit
from cutaway.explain.subject import Subject
from cutaway.explain.verdict import EXPLAINED
from cutaway.programs.compiler import compile_program
from cutaway.prompts import Prompts
from cutaway.tasks.cumulative_sum import CumulativeSum
from cutaway.tasks.palindromes import Palindromes
from cutaway.tasks.sorted_list import SortedList

TASKS = [Palindromes(max_value=6, half_length=2), SortedList(list_len=4, max_value=9), CumulativeSum()]
Case = tuple[str, Any, Prompts]


def examples(program: Any, count: int, seed: int, longest: int = 10) -> Prompts:
    """Random inputs of a program, with its answers."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=dice).tolist()
    rows = [[0, *torch.randint(1, len(program.vocabulary), (n - 1,), generator=dice).tolist()] for n in lengths]
    right = tuple({at: (token,) for at, token in programs.predict(program, row).items()} for row in rows)
    return Prompts.of_rows(rows, right=right)


def short_rows(program: Any, longest: int = 6) -> Iterator[list[int]]:
    """Every input of a program up to a length."""
    letters = range(1, len(program.vocabulary))
    return ([0, *tail] for length in range(longest) for tail in itertools.product(letters, repeat=length))


def equivalent(one: Any, other: Any) -> bool:
    """Whether two programs answer alike on every short input."""
    return all(programs.predict(one, row) == programs.predict(other, row) for row in short_rows(one))


def come_back(count: int, norm: str | None) -> tuple[int, float]:
    """How many random programs come back, and the processor time for each."""
    right, begun = 0, time.process_time()
    for seed in range(count):
        program = programs.draw(seed)
        prompts = examples(program, 600, seed)
        subject = Subject(compile_program(program, HookedTransformer, norm=norm).model, prompts)
        right += equivalent(program, fit(subject, with_short(subject, subject.answered(prompts))).program)
    return right, (time.process_time() - begun) / count


def random_weights() -> list[Case]:
    """Ten networks that nobody trained."""
    found = []
    for seed, task in zip(range(10), itertools.cycle(TASKS)):
        torch.manual_seed(seed)
        found.append((f"random {seed}", HookedTransformer(task.config()), task.prompts(200, seed=seed).without_counterparts()))
    return found


def shuffled_weights() -> list[Case]:
    """Ten networks that compute a program, with the numbers of every weight shuffled."""
    found = []
    for seed in range(10):
        program = programs.draw(300 + seed, lines=3)
        model = copy.deepcopy(compile_program(program, HookedTransformer, norm="LN").model)
        dice = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=dice)].view_as(weight))
        found.append((f"shuffled {seed}", model, examples(program, 300, seed)))
    return found


def early_checkpoints() -> list[Case]:
    """Five states of one training, after 0 to 80 steps."""
    task = TASKS[2]
    torch.manual_seed(0)
    model = HookedTransformer(task.config())
    task.prepare(model)
    prompts, found = task.prompts(200, seed=5).without_counterparts(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wanted = [0, 10, 20, 40, 80]
    for steps, batch in enumerate(task.batches(0, 81, 128, torch.Generator().manual_seed(0))):
        if steps in wanted:
            found.append((f"step {steps}", copy.deepcopy(model), prompts))
        logits = model(batch.tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def verdicts(cases: list[Case]) -> list[str]:
    """The verdict on each case, printed as it comes."""
    said = []
    for name, model, prompts in cases:
        found = explain(model, prompts).verdict
        said.append(found.verdict)
        print(f"  {name}: {found.verdict}; {found.reasons[0] if found.reasons else 'every test passed'}", flush=True)
    return said


def subjects(folder: Path) -> list[str]:
    """The verdict and the processor time of every published subject in a folder."""
    rows = []
    for one in sorted(path for path in folder.iterdir() if path.is_dir()):
        model = HookedTransformer.from_pretrained(str(one), center_unembed=False)
        begun = time.process_time()
        given, test = (Prompts.read(one / name, model.tokenizer) for name in ("train.jsonl", "test.jsonl"))
        found = explain(model, given, test, name=one.name).verdict
        spent = time.process_time() - begun
        rows.append(f"| {one.name} | {found.verdict} | {found.match} | {found.scrubbed} | {found.graph} | {spent:.0f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--subjects", type=Path)
    given = parser.parse_args()
    ok = True
    for norm in (None, "LN"):
        right, spent = come_back(given.programs, norm)
        print(f"random programs, norm {norm}: {right} of {given.programs} come back, {spent:.1f} s each")
        ok &= right >= 0.9 * given.programs
    refused = verdicts([*random_weights(), *shuffled_weights(), *early_checkpoints()])
    print(f"networks without a story: {refused.count(EXPLAINED)} of {len(refused)} explained")
    if given.subjects:
        print("| subject | verdict | M | S | C | seconds of one core |\n|---|---|---|---|---|---|")
        subjects(given.subjects)
    return 0 if ok and EXPLAINED not in refused else 1


if __name__ == "__main__":
    sys.exit(main())
