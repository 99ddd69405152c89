"""The card beside a trained model: which command made it, on what, and what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutaway.model.transformer import Transformer
from cutaway.tasks.task import Recipe, Task

if TYPE_CHECKING:
    from cutaway.tasks.training import Training


def command(task: Task, seed: int, recipe: Recipe) -> str:
    """The command that trains this model again."""
    words = ["cutaway train", task.name, "--out DIR", f"--seed {seed}", *task.arguments()]
    options = {"epochs": "--epochs", "steps": "--steps", "batch_size": "--batch-size", "lr": "--lr"}
    for field, option in options.items():
        if getattr(recipe, field) != getattr(task.recipe, field):
            words.append(f"{option} {getattr(recipe, field):g}")
    return " ".join(words)


def card(training: Training, task: Task, model: Transformer) -> str:
    """The card, in Markdown."""
    recipe, best, cfg = training.recipe, training.best, model.cfg
    position = f"{cfg.positional_embedding_type} positions"
    norm = {"LN": "LayerNorm", None: "no norm"}.get(cfg.normalization_type, cfg.normalization_type)
    body = "attention only" if cfg.attn_only else f"MLPs of {cfg.d_mlp}"
    lines = [
        f"# {task.name}",
        "",
        f"Learned: {task.summary}.",
        "",
        f"- Model: {cfg.n_layers} layers of {cfg.n_heads} heads, d_model {cfg.d_model}, d_head {cfg.d_head}, {body}, {norm}, "
        f"{position}, {cfg.n_ctx} positions, vocabulary {cfg.d_vocab}.",
        f"- Command: `{command(task, training.seed, recipe)}`",
        f"- Seed: {training.seed}.",
        f"- Trained for {recipe.epochs} epochs of {recipe.steps} batches of {recipe.batch_size} sequences with AdamW, learning "
        f"rate {recipe.lr:g} after {recipe.warmup} steps of warm-up, then falling in a straight line to zero, weight decay "
        f"{recipe.weight_decay:g}.",
        f"- Kept: epoch {best.number} of {recipe.epochs}, the best by validation loss.",
        f"- Validation: loss {best.loss:.4f}, accuracy {best.accuracy:.4f}.",
        *(f"- {note}" for note in task.notes(model)),
    ]
    return "\n".join(lines) + "\n"
