"""Training: a task and a seed go in, a folder with the best model and the state of the training comes out.

What happens in an epoch depends only on the seed, the epoch's number and the state at its start, and that state is
on disk before the next epoch begins. So an interrupted training loses at most one epoch, and resumed it ends with
the very weights of an uninterrupted one (on the same machine, with as many threads).

The folder: `model.safetensors` (with its configuration and tokenizer) is the best epoch by validation loss,
`training.pt` the state after the last one, `card.md` how the model was made.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cutaway import writing
from cutaway.errors import CheckpointError, ConfigError
from cutaway.model.transformer import Transformer
from cutaway.sources import files
from cutaway.tasks.model_card import card, command
from cutaway.tasks.task import Examples, Recipe, Task, evaluate, loss_of

MODEL, STATE, CARD = "model.safetensors", "training.pt", "card.md"
STATE_KEYS = {"begun", "model", "optimizer", "history", "best", "best_weights"}
CHUNK = 50  # batches that are drawn at once: drawing many examples costs little more than drawing few


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: the mean training loss, and loss and accuracy on the validation examples."""

    number: int
    training_loss: float
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """A finished training."""

    task: str
    seed: int
    recipe: Recipe
    epochs: tuple[Epoch, ...]
    best: Epoch
    folder: Path


@dataclass
class Watch:
    """Whom training tells how it goes; by default nobody."""

    begin: Callable[[Recipe, int], None] = lambda recipe, done: None
    step: Callable[[int, torch.Tensor], None] = lambda step, loss: None
    epoch: Callable[[Epoch, bool], None] = lambda epoch, best: None


def train(
    task: Task,
    out: str | Path,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    watch: Watch | None = None,
) -> Training:
    """Train a model for a task, from the beginning or from where an interrupted training stopped.

    Args:
        out: the folder to write.
        epochs, steps, batch_size, lr, seed: what differs from the task's recipe and from seed 42. A resumed training
            keeps what it began with.
        resume: continue in `out` where its state stands; where it holds no state yet, begin.

    Raises:
        ConfigError: `out` holds a training and `resume` is off, or that training was begun differently; a
            number makes no sense; or there is no such device.
        CheckpointError: the state in `out` cannot be read, or nothing can be written there.
    """
    folder, watch = writing.check_folder(out), watch or Watch()
    state_file = folder / STATE
    if state_file.exists() and not resume:
        raise ConfigError(f"{folder} already holds a training; continue it with resume (--resume), or choose another folder")
    state = read_state(state_file) if state_file.exists() else None
    given = {"epochs": epochs, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    recipe, seed = _settled(task, given, state and state["begun"], folder)
    run = _Run(task, recipe, seed, _device(device))
    if state is not None:
        run.restore(state, state_file)
    else:
        run.write_state(state_file)
    watch.begin(recipe, len(run.history))
    validation = run.move(task.validation())
    for number in range(len(run.history) + 1, recipe.epochs + 1):
        epoch = run.epoch(number, validation, watch)
        better = run.note(epoch)
        if better:
            run.save_best(folder / MODEL)
        run.write_state(state_file)
        watch.epoch(epoch, better)
    assert run.best is not None
    run.model.load_state_dict(run.best_weights)
    run.save_best(folder / MODEL)
    done = Training(task.name, seed, recipe, tuple(run.history), run.best, folder)
    text = card(done, task, run.model)
    writing.write(folder / CARD, text)
    return done


def read_state(path: Path) -> dict[str, Any]:
    """The state that a training left.

    Raises:
        CheckpointError: the file is damaged, or is no such state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as the state of a training; train again in another folder") from error
    if not isinstance(state, dict) or set(state) != STATE_KEYS:
        raise CheckpointError(f"{path} is not the state of a training; train again in another folder")
    return state


def _settled(task: Task, given: dict[str, Any], saved: dict[str, Any] | None, folder: Path) -> tuple[Recipe, int]:
    """The recipe and the seed: as given, else as the training began, else the task's own."""
    given = {key: value for key, value in given.items() if value is not None}
    settled = {**dataclasses.asdict(task.recipe), "seed": 42, **given}
    if saved is not None:
        fixed = {"task": task.name, "data": task.fingerprint(), **given}
        differ = [f"{key} {saved.get(key)!r}, not {value!r}" for key, value in fixed.items() if saved.get(key) != value]
        if differ:
            raise ConfigError(f"the training in {folder} was begun with {'; '.join(differ)}: resume it with the same")
        settled = {key: saved[key] for key in settled}
    seed = settled.pop("seed")
    recipe = Recipe(**settled)
    if recipe.epochs < 1 or recipe.steps < 1 or recipe.batch_size < 1 or recipe.lr <= 0 or not 0 <= seed < 2**40:
        raise ConfigError(
            "epochs, steps, batch size and learning rate must be positive, and the seed at least 0 and below 2**40; these are "
            f"{recipe.epochs}, {recipe.steps}, {recipe.batch_size} and {recipe.lr:g}, and {seed}"
        )
    return recipe, seed


def _device(name: str | None) -> str:
    """The device to train on; refused where this machine has none of that name."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"this machine has no device {name!r} that Torch can use; leave it out, or say cpu") from error
    return name


class _Run:
    """A training under way: what moves from epoch to epoch."""

    def __init__(self, task: Task, recipe: Recipe, seed: int, device: str) -> None:
        self.task, self.recipe, self.seed, self.device = task, recipe, seed, device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = Transformer(dataclasses.replace(task.config(), seed=None, device=device)).to(device)
            task.prepare(self.model)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
        )
        self.tokenizer = task.tokenizer()
        self.history: list[Epoch] = []
        self.best: Epoch | None = None
        self.best_weights: dict[str, torch.Tensor] = {}

    def move(self, examples: Examples) -> Examples:
        return Examples(*(part.to(self.device) for part in examples))

    def epoch(self, number: int, validation: Examples, watch: Watch) -> Epoch:
        recipe, start = self.recipe, time.perf_counter()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        summed = torch.zeros((), device=self.device)
        done = 0
        while done < recipe.steps:
            steps = min(CHUNK, recipe.steps - done)
            for examples in self.task.batches(number, steps, recipe.batch_size, generator):
                tokens, labels = self.move(examples)
                batch_loss = self.step((number - 1) * recipe.steps + done, tokens, labels)
                summed += batch_loss
                done += 1
                watch.step(done, batch_loss)
        loss, accuracy = evaluate(self.model, validation)
        return Epoch(number, float(summed) / recipe.steps, loss, accuracy, time.perf_counter() - start)

    @torch.enable_grad()  # (Torch's `no_grad` stays on where an interrupt comes as it begins or ends)
    def step(self, step: int, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        recipe = self.recipe
        rate = recipe.lr * min(1.0, (step + 1) / recipe.warmup) * (1 - step / (recipe.steps * recipe.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model(tokens), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        self.optimizer.step()
        return loss.detach()

    def note(self, epoch: Epoch) -> bool:
        """Enter an epoch into the history; True where it is the best so far."""
        self.history.append(epoch)
        if self.best is not None and self.best.loss <= epoch.loss:
            return False
        self.best = epoch
        self.best_weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        return True

    def save_best(self, path: Path) -> None:
        """Write the best weights, and with them where they come from."""
        assert self.best is not None
        metadata = {
            "task": self.task.name,
            "command": command(self.task, self.seed, self.recipe),
            "seed": self.seed,
            "epoch": self.best.number,
            "validation_loss": round(self.best.loss, 6),
            "validation_accuracy": round(self.best.accuracy, 6),
        }
        weights = {name: weight.to(self.task.stored) for name, weight in self.best_weights.items()}
        files.save(path, weights, self.model.cfg, tokenizer=self.tokenizer, metadata=metadata)

    def write_state(self, path: Path) -> None:
        with writing.replacing(path) as file:
            torch.save(self.state(), file)

    def state(self) -> dict[str, Any]:
        begun = {"task": self.task.name, "seed": self.seed, "data": self.task.fingerprint()}
        return {
            "begun": begun | dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "best": self.best and self.best.number,
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} is of another model than this task's; train again in another folder") from error
        self.best = next((epoch for epoch in self.history if epoch.number == state["best"]), None)
        self.best_weights = {key: value.to(self.device) for key, value in state["best_weights"].items()}
