"""The report on models that find the first unique character: a list of sections over one study.

The network has two layers; layer 0 marks which letters are repeated and which are not, layer 1 turns the marks into
logits. Whether a given model does it that way, and which heads do what, is measured, section by section.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cutaway.errors import CheckpointError
from cutaway.report.first_unique_char import (
    ablations,
    attributions,
    behaviour,
    failures,
    layer0,
    layer1,
    overview,
    questions,
    special,
)
from cutaway.report.first_unique_char.study import NAME, LettersStudy, network
from cutaway.report.parts import LettersReport, Part

SECTIONS: dict[str, Callable[[LettersStudy], Part]] = {
    "how well it does": behaviour.performance,
    "examples": behaviour.examples,
    "norm scales": behaviour.norms,
    "attention of layer 0": layer0.attention,
    "scores of layer 0 from weights": layer0.token_scores,
    "tokens and positions in layer 0": layer0.full_scores,
    "direct logit attribution": attributions.contributions,
    "ablations": ablations.effects,
    "scores of layer 1": layer1.scores,
    "what layer 0 writes to the logits": layer1.first_outputs,
    "what layer 1 writes to the logits": layer1.outputs,
    "full circuits": layer1.full,
    "position 1": special.position_one,
    "first instances": special.first_instances,
    "worst examples": failures.worst,
    "adversarial sequences": failures.adversarial,
    "open questions": questions.answers,
}


def report(checkpoint: str | Path | None, size: int, seed: int, watch: Callable[[str, int, int], None]) -> LettersReport:
    """Make the report; see `cutaway.report.make`."""
    model, letters = network(checkpoint)
    name = "the bundled model" if checkpoint is None else Path(checkpoint).name
    study = LettersStudy(model, letters, size, seed, name)
    if not bool(study.logits.isfinite().all()):
        raise CheckpointError(
            f"{checkpoint or NAME}: its weights give logits that are no finite numbers; train or download it again"
        )
    parts = []
    for number, (doing, section) in enumerate(SECTIONS.items()):
        watch(doing, number, len(SECTIONS))
        parts.append(section(study))
    watch("done", len(SECTIONS), len(SECTIONS))
    cfg = model.cfg
    about = {
        "task": NAME,
        "model": name,
        "size": size,
        "seed": seed,
        "letters": letters,
        "shape": {
            "n_layers": cfg.n_layers,
            "n_heads": cfg.n_heads,
            "d_model": cfg.d_model,
            "d_head": cfg.d_head,
            "n_ctx": cfg.n_ctx,
        },
    }
    subtitle = (
        f"{name if checkpoint else name.capitalize()}: {cfg.n_layers} layers of {cfg.n_heads} heads, attention only, "
        f"d_model {cfg.d_model}, "
        f"{cfg.n_ctx} positions; run on {size:,} sequences of seed {seed}"
    )
    return LettersReport(
        "First unique character: how the model works", subtitle, overview.intro(study), [overview.found(study), *parts], about
    )
