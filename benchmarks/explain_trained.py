"""Random programs by networks that learn them: each is trained on the program's data, explained, and compared with the program.

    python benchmarks/explain_trained.py MODELS [--first 0] [--programs 100] [--only train|explain] [--seconds 60]

MODELS is a folder that keeps the trained networks, so that explanations can be run again without a training. A program comes back
if its explanation answers alike on every input up to length 6; beside it stands on how many of these inputs the network itself
answers differently. Prints one line for each program, and the counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway import HookedTransformer, HookedTransformerConfig, programs
from cutaway.explain.batched import Batch
from cutaway.explain.explaining import with_short
from cutaway.explain.fitting import fit
from cutaway.explain.subject import Subject
from cutaway.programs.placing import place
from cutaway.prompts import Prompts
from explain import equivalent, examples, short_rows

LONGEST, ROWS, BATCH, STEPS = 10, 8192, 256, 4000
ENOUGH = 0.99  # of the answers on held-out inputs, for a network to have learned its program
Drawn = tuple[Tensor, Tensor]  # inputs of one length, and the program's answers at every position


def data(program: Any, seed: int) -> Callable[[int], Drawn]:
    """Batches of random inputs: of the longest length, which holds all shorter ones, or of one length each if keys come later."""
    dice = torch.Generator().manual_seed(seed)
    kept = {}
    for length in [LONGEST] if program.causal else range(1, LONGEST + 1):
        tokens = torch.randint(1, len(program.vocabulary), (ROWS, length), generator=dice)
        tokens[:, 0] = 0
        batch = Batch(
            tokens, torch.ones_like(tokens).bool(), n_ctx=program.n_ctx, d_vocab=len(program.vocabulary), causal=program.causal
        )
        kept[length] = tokens, batch.logits(program).argmax(-1)

    def drawn(size: int) -> Drawn:
        tokens, answers = kept[list(kept)[int(torch.randint(0, len(kept), (), generator=dice))]]
        rows = torch.randint(0, ROWS, (size,), generator=dice)
        return tokens[rows], answers[rows]

    return drawn


def network(program: Any, seed: int, layers: int) -> HookedTransformer:
    """A small network for a program's inputs, not yet trained."""
    torch.manual_seed(seed)
    cfg = HookedTransformerConfig(
        n_layers=layers, d_model=48, n_heads=4, d_head=12, d_mlp=128, n_ctx=LONGEST, d_vocab=len(program.vocabulary),
        d_vocab_out=len(program.answers), act_fn="relu", normalization_type="LN",
        attention_dir="causal" if program.causal else "bidirectional",
    )  # fmt: skip
    return HookedTransformer(cfg)


@dataclass
class Trained:
    """A network, its accuracy on fresh inputs, and what it took."""

    model: HookedTransformer
    accuracy: float
    steps: int
    seconds: float


def train(program: Any, seed: int, seconds: float) -> Trained:
    """Train until 20 checks' inputs (or all steps, or the time) are through; the rate falls with whichever ends first."""
    model, drawn = network(program, seed, max(2, place(program).layers)), data(program, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    begun, clean, accuracy = time.process_time(), 0, 0.0
    for step in range(1, STEPS + 1):
        spent = max((time.process_time() - begun) / seconds, step / STEPS)
        if spent >= 1:
            break
        optimizer.param_groups[0]["lr"] = 3e-3 * min(step / 50, 1.0) * max(1 - spent, 0.02)
        tokens, answers = drawn(BATCH)
        logits = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clean = clean + 1 if float(loss.detach()) < 0.002 and torch.equal(logits.argmax(-1), answers) else 0
        if clean >= 40:
            break
    with torch.no_grad():
        accuracy = sum(float((model(t).argmax(-1) == a).double().mean()) for t, a in (drawn(1000) for _ in range(10))) / 10
    return Trained(model, accuracy, step, time.process_time() - begun)


def stored(folder: Path, seed: int, seconds: float) -> tuple[HookedTransformer, float]:
    """The network of a seed, trained if the folder has none."""
    path, program = folder / f"{seed}.pt", programs.draw(seed)
    if not path.exists():
        found = train(program, seed, seconds)
        torch.save({"state": found.model.state_dict(), "accuracy": found.accuracy, "layers": found.model.cfg.n_layers}, path)
        print(f"  {seed}: accuracy {found.accuracy:.4f}, {found.steps} steps, {found.seconds:.0f} s", flush=True)
    kept = torch.load(path, weights_only=True)
    model = network(program, seed, kept["layers"])
    model.load_state_dict(kept["state"])
    return model, kept["accuracy"]


def differing(model: HookedTransformer, program: Any) -> int:
    """On how many of all inputs up to length 6 the network itself is not the program."""
    rows = list(short_rows(program))
    count = 0
    with torch.no_grad():
        for length in sorted({len(row) for row in rows}):
            tokens = torch.tensor([row for row in rows if len(row) == length])
            said = model(tokens).argmax(-1).tolist()
            right = [[programs.predict(program, row)[at] for at in range(length)] for row in tokens.tolist()]
            count += sum(one != other for one, other in zip(said, right, strict=True))
    return count


def explained(model: HookedTransformer, program: Any, seed: int) -> tuple[bool, Any]:
    """Whether the explanation of a network is equivalent to its program, and the explanation."""
    prompts: Prompts = examples(program, 600, seed)
    subject = Subject(model, prompts)
    found = fit(subject, with_short(subject, subject.answered(prompts))).program
    return equivalent(program, found), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--only", choices=["train", "explain"])
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    given.models.mkdir(parents=True, exist_ok=True)
    right = learned = tried = 0
    for seed in range(given.first, given.programs):
        if given.only == "explain" and not (given.models / f"{seed}.pt").exists():
            continue
        model, accuracy = stored(given.models, seed, given.seconds)
        if given.only == "train":
            continue
        program, begun = programs.draw(seed), time.process_time()
        same, _ = explained(model, program, seed)
        spent, mistakes = time.process_time() - begun, differing(model, program)
        tried, learned, right = tried + 1, learned + (accuracy >= ENOUGH), right + same
        print(
            f"{seed}: {'comes back' if same else 'DIFFERS'}; network: accuracy {accuracy:.4f}, "
            f"{mistakes} of the short inputs differ; {spent:.1f} s",
            flush=True,
        )
    print(f"{right} of {tried} programs come back; {learned} networks have at least {ENOUGH:.0%} of the answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
