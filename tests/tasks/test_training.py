"""Training can be stopped anywhere and resumed to the same bits, and its folder is never left half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import CheckpointError, ConfigError
from cutaway.model.transformer import Transformer
from cutaway.sources import files
from cutaway.tasks import Examples, FirstUniqueCharTask, evaluate
from cutaway.tasks.task import UNCOUNTED
from cutaway.tasks.training import CARD, MODEL, STATE, Training, Watch, read_state, train

TASK = FirstUniqueCharTask(vocab=tuple("abc"), seq_len=6)
SHORT: dict[str, Any] = {"epochs": 3, "steps": 4, "batch_size": 8, "lr": 0.01}


def short(out: Path, **changes: Any) -> Training:
    return train(TASK, out, **({**SHORT, "seed": 5, "device": "cpu"} | changes))


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit, seconds aside."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return set(left) == set(right) and all(same(left[key], right[key]) for key in left if key != "seconds")
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def stop_at(epoch: int, step: int) -> Watch:
    """A watch that interrupts, as Ctrl-C would."""
    begun = [1]

    def at_step(number: int, loss: torch.Tensor) -> None:
        if begun[0] == epoch and number == step:
            raise KeyboardInterrupt

    def at_epoch(what: Any, best: bool) -> None:
        begun[0] += 1

    return Watch(step=at_step, epoch=at_epoch)


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 3), (3, 4)])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, epoch: int, step: int):
    short(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path / "stopped", watch=stop_at(epoch, step))
    torch.rand(7)  # the global generator has moved on
    train(TASK, tmp_path / "stopped", device="cpu", resume=True)  # its recipe and seed are in the folder
    assert same(read_state(tmp_path / "whole" / STATE), read_state(tmp_path / "stopped" / STATE))
    assert (tmp_path / "whole" / MODEL).read_bytes() == (tmp_path / "stopped" / MODEL).read_bytes()


def test_training_takes_gradients_in_whatever_mode_an_interrupt_left(tmp_path: Path):
    with torch.no_grad():
        short(tmp_path / "without")
    short(tmp_path / "with")
    assert (tmp_path / "without" / MODEL).read_bytes() == (tmp_path / "with" / MODEL).read_bytes()


def test_a_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        short(tmp_path / name, seed=seed, epochs=1)
    a, b, c = (read_state(tmp_path / name / STATE)["model"] for name in "abc")
    assert same(a, b) and not same(a, c)


def test_the_global_generator_is_left_alone(tmp_path: Path):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    short(tmp_path, epochs=1)
    assert torch.equal(torch.rand(3), wanted)


def test_every_epoch_and_every_seed_draws_examples_of_its_own_and_validation_is_always_the_same(tmp_path: Path):
    drawn: list[torch.Tensor] = []

    class Recorded(FirstUniqueCharTask):
        def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
            drawn.append(super().draw(count, generator))
            return drawn[-1]

    for seed in (1, 2):
        train(Recorded(), tmp_path / str(seed), **{**SHORT, "epochs": 2}, seed=seed, device="cpu")
    validated, trained = ([one for one in drawn if (len(one) == 2000) == whole] for whole in (True, False))
    assert len(trained) == 4 and len({tuple(tokens.flatten().tolist()) for tokens in trained}) == 4
    assert len(validated) == 2 and torch.equal(*validated)


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = iter([1.5, 0.5, 1.0])
    weights = []

    def judged(model: Transformer, examples: Examples) -> tuple[float, float]:
        weights.append({key: value.clone() for key, value in model.state_dict().items()})
        return next(losses), 0.5

    monkeypatch.setattr("cutaway.tasks.training.evaluate", judged)
    done = short(tmp_path)
    assert done.best.number == 2
    assert same(dict(files.read(tmp_path / MODEL).tensors), weights[1]) and not same(weights[1], weights[2])


def test_what_is_saved_is_the_model_that_was_validated(tmp_path: Path):
    done = short(tmp_path)
    checkpoint = files.read(tmp_path / MODEL)
    model = Transformer(checkpoint.config)
    model.load_state_dict(dict(checkpoint.tensors))
    assert evaluate(model, TASK.validation()) == (done.best.loss, done.best.accuracy)
    assert checkpoint.tokenizer == TASK.tokenizer()
    assert checkpoint.provenance["task"] == TASK.name and checkpoint.provenance["seed"] == 5


def test_the_card_states_command_seed_and_figures(tmp_path: Path):
    done = short(tmp_path)
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert "`cutaway train first-unique-char --out DIR --seed 5 --epochs 3 --steps 4 --batch-size 8 --lr 0.01`" in card
    assert f"loss {done.best.loss:.4f}, accuracy {done.best.accuracy:.4f}" in card


def test_training_learns(tmp_path: Path):
    done = short(tmp_path, epochs=2, steps=150, batch_size=64, lr=3e-3)
    assert done.best.accuracy > 0.9


def test_a_folder_with_a_training_is_not_overwritten(tmp_path: Path):
    short(tmp_path, epochs=1)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(ConfigError, match="already holds a training"):
        short(tmp_path, epochs=1)
    assert (tmp_path / STATE).read_bytes() == before


def test_resuming_differently_is_refused(tmp_path: Path):
    short(tmp_path, epochs=1)
    with pytest.raises(ConfigError, match=r"lr 0\.01, not 0\.5"):
        short(tmp_path, epochs=1, lr=0.5, resume=True)
    with pytest.raises(ConfigError, match="data"):
        train(FirstUniqueCharTask(vocab=tuple("abcd"), seq_len=6), tmp_path, resume=True)


def test_resuming_where_nothing_is_begins(tmp_path: Path):
    assert len(short(tmp_path / "new", resume=True).epochs) == 3


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04 cut short"])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(CheckpointError, match="another folder"):
        short(tmp_path, resume=True)


def test_a_foreign_state_is_refused(tmp_path: Path):
    torch.save({"model": torch.ones(2)}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="not the state of a training"):
        short(tmp_path, resume=True)


def test_a_failed_write_leaves_the_state_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short(tmp_path, epochs=2, watch=Watch())
    whole = read_state(tmp_path / STATE)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def fill_the_disk(epoch: Any, best: bool) -> None:
        monkeypatch.setattr(os, "replace", full)

    with pytest.raises(CheckpointError, match="No space left"):
        short(tmp_path / "full", epochs=2, watch=Watch(epoch=fill_the_disk))
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == [MODEL, STATE]
    assert same(read_state(tmp_path / "full" / STATE)["history"], whole["history"][:1])


def test_drafts_of_a_killed_training_are_cleared(tmp_path: Path):
    draft, other = tmp_path / ".cutaway-0123456789ab.partial", tmp_path / ".mine.partial"
    draft.touch()
    other.touch()
    short(tmp_path, epochs=1)
    assert not draft.exists() and other.exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "these are 0, 4, 8 and 0.01, and 5"),
        ({"lr": -1.0}, "3, 4, 8 and -1, and 5"),
        ({"seed": -3}, "and -3"),
        ({"device": "no-such"}, "no device 'no-such'"),
    ],
)
def test_impossible_recipes_are_refused(tmp_path: Path, wrong: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        short(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_the_output_must_not_be_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        short(tmp_path / "file")


def test_evaluation_counts_positions_not_sequences(tmp_path: Path):
    short(tmp_path, epochs=1)
    checkpoint = files.read(tmp_path / MODEL)
    model = Transformer(checkpoint.config)
    model.load_state_dict(dict(checkpoint.tensors))
    tokens = TASK.draw(9, torch.Generator().manual_seed(3))
    labels = TASK.answers(tokens)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=torch.Generator().manual_seed(4)) < 0.6, UNCOUNTED)
    loss, accuracy = evaluate(model, Examples(tokens, labels), at_once=2)
    logits = model(tokens)
    counted = [(i, j) for i in range(9) for j in range(6) if labels[i, j] != UNCOUNTED]
    right = [logits[i, j].log_softmax(-1)[labels[i, j]].item() for i, j in counted]
    assert loss == pytest.approx(-sum(right) / len(counted), rel=1e-5)
    assert accuracy == sum(bool(logits[i, j].argmax() == labels[i, j]) for i, j in counted) / len(counted)
