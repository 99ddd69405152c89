"""The public call: models × prompts × options, each an answer of its own, looked up first and computed where it is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cutaway.errors import ConfigError, NotReadable, WorkerFailed
from cutaway.executors import Executor, Processes, executor_of
from cutaway.many.job import AskJob, OneQuestion, answer_of, check_options, name_of, takes
from cutaway.many.keys import described
from cutaway.many.planning import AcrossPlan, plan_of
from cutaway.model.transformer import Transformer
from cutaway.numbers_given import options as checked
from cutaway.prompts import Prompts
from cutaway.runs.bars import DelayedBar
from cutaway.runs.hashes import digest
from cutaway.runs.model_source import AS_USUAL, ModelSource
from cutaway.tasks.behaviour import Behaviour
from cutaway.tasks.given import of_behaviour
from cutaway.tokens import to_saved
from cutaway.writing import check_folder

WEIGHTS = ".weights"  # where models that are only in memory are written for other processes
Model = Transformer | str | Path
Progress = Callable[[float, float], None]
Place = tuple[str, str, str]  # model, prompts, options


@dataclass(frozen=True)
class Across:
    """Answers to one question.

    Args:
        question: the function that was asked.
        answers: (model, prompts, options) → what the function returned; options are "" where there is one set of them.
        computed, reused: how many were computed now, and how many were there.
        folder: where they are kept.
    """

    question: str
    answers: Mapping[Place, Any] = field(repr=False)
    computed: int
    reused: int
    folder: str

    def __getitem__(self, place: Any) -> Any:
        """The answer of a model on prompts: `found["pythia-70m@1000", "ioi"]`."""
        key = place if isinstance(place, tuple) else (place,)
        fits = [one for one in self.answers if all(part in one for part in key)]
        if len(fits) != 1:
            there = ", ".join(map(_place_text, self.answers))
            raise KeyError(f"{place!r} names {len(fits)} of {len(self.answers)} answers; there are {there}")
        return self.answers[fits[0]]

    def to_frame(self) -> Any:
        """The frames of all answers, one below the other, with the columns `model`, `prompts` and `options` in front."""
        import pandas as pd

        frames = []
        for (model, prompts, options), one in self.answers.items():
            frame = one.to_frame()
            for at, (name, value) in enumerate((("model", model), ("prompts", prompts), ("options", options))):
                frame.insert(at, name, value)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> str:
        """Each answer's own summary under what it is of."""
        lines = [f"{self.question}: {len(self.answers)} answers, {self.computed} of them computed now, kept in {self.folder}"]
        for place, one in self.answers.items():
            text = one.summary() if hasattr(one, "summary") else one.text() if hasattr(one, "text") else str(one)
            lines += [f"{_place_text(place)}:", *(f"  {line}" for line in text.splitlines())]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        listed = [{"model": model, "prompts": prompts, "options": options, "answer": _plain(one)}
                  for (model, prompts, options), one in self.answers.items()]  # fmt: skip
        return {"question": self.question, "computed": self.computed, "reused": self.reused, "answers": listed}


def _plain(one: Any) -> Any:
    return one.numbers() if hasattr(one, "numbers") and callable(one.numbers) else one.to_json()


def _place_text(place: Place) -> str:
    return ", ".join(filter(None, place))


@checked(count=1, seed=0, rows=1, threads=1)
def across(
    question: Callable[..., Any],
    models: Model | Sequence[Model] | Mapping[str, Model],
    prompts: Any,
    *,
    results: Path | str,
    executor: str | Executor | None = None,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    count: int | None = None,
    seed: int = 0,
    rows: int | None = None,
    allow_first_token: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Across:
    """Ask every model about every set of prompts. An answer that `results` holds is not computed again.

    An answer's key is what decides it: the function, the model's hash, tokens and what is known of the prompts, options,
    versions, threads. So more models, checkpoints or prompts, or the same call again, compute what is new, with any executor.

    Example: `across(patch, ["pythia-70m@1000", "pythia-70m@143000"], ["ioi"], results="out", kinds=["z"]).to_frame()`

    Args:
        question: a function of cutaway that takes a model, prompts and options: `patch`, `ablate`, `attribute`, `lens`,
            `edge_effects`, `circuit_for`, `report.make`, ….
        models: names, files or folders as `from_pretrained` takes them, `NAME@STEP` for a checkpoint of a training run, or
            networks; a mapping gives them labels. Weights are rewritten as usual; a network is taken as it is.
        prompts: `Prompts`, a behaviour or its name, a file (as `Prompts.read` takes it; a `Path`), or a mapping of labels to
            such; each model gets behaviours and files in its own tokens.
        results: a folder that all workers see. It may hold anything else that `results=` names.
        executor: "local", "processes:N", "ray", "ray:ADDRESS", "ranks", or one of `cutaway.executors`.
        each: label → more options: every model and every set of prompts is asked with each.
        count, seed: prompts of a behaviour.
        allow_first_token: of answers in files that are several tokens take the first.
        rows: take each set in parts of so many prompts, so that more prompts compute what is new.
        progress: called with (answers computed now, all that were not there, as far as they are known).
        say: called for each model of which some answers are there, with how many are left.
        options: for the function.

    Raises:
        CheckpointError: an option is a function or a cache, which has no key.
        ConfigError: the function is not one of cutaway's, or nothing is asked.
        WorkerFailed: a question failed three times; the other answers are kept.
        UnknownModel, UnknownTask: nothing has this name.
        NotWritten: the folder or the disk does not take it; what is finished is kept.
    """
    run = _asked(
        question, models, prompts, results, executor_of(executor), each=each, count=count, seed=seed, rows=rows, dtype=dtype,
        allow_first_token=allow_first_token,
        device=device, threads=threads, progress=progress, say=say or _unsaid, **options,
    )  # fmt: skip
    run.folder.mkdir(parents=True, exist_ok=True)
    answers = run.answers()
    return Across(question.__name__, answers, len(run.questions) - len(run.reused), len(run.reused), str(run.folder))


def plan(
    question: Callable[..., Any],
    models: Model | Sequence[Model] | Mapping[str, Model],
    prompts: Any,
    *,
    results: Path | str,
    executor: str | Executor | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **asked: Any,
) -> AcrossPlan:
    """Say what `across` with the same arguments would cost. A few prompts of each kind are asked, and nothing is kept.

    Example: `many.plan(patch, ["pythia-70m@1000", "pythia-70m@143000"], ["ioi"], results="out", kinds=["z"]).summary()`

    Args:
        question, models, prompts, results, executor, asked: as `across` takes them.
        progress: called with (kinds of questions that are measured, all kinds); by default a bar where somebody looks on.
        say: called before anything is measured, with a sentence, where that takes no less than `across` itself.

    Raises:
        CheckpointError, ConfigError, UnknownModel, UnknownTask: as `across` raises them.
        WorkerFailed: a question cannot be answered.
    """
    workers = executor_of(executor).workers
    with TemporaryDirectory() as weights:
        run = _asked(question, models, prompts, results, Processes(1), progress=_silent, weights=Path(weights), **asked)
        found = plan_of(run.missing(), workers, progress or DelayedBar("measuring"), say or _unsaid)
    return replace(found, answers=len(run.questions), reused=len(run.reused))


def _silent(done: float, total: float) -> None:
    """No bar."""


def _unsaid(sentence: str) -> None:
    """Nobody listens."""


@checked(count=1, seed=0, rows=1, threads=1)
def _asked(
    question: Callable[..., Any], models: Any, prompts: Any, results: Path | str, executor: Executor, *,
    each: Mapping[str, Mapping[str, Any]] | None = None, count: int | None = None, seed: int = 0, rows: int | None = None,
    allow_first_token: bool = False, dtype: str = "float32", device: str = "cpu", threads: int = 1,
    progress: Progress | None = None, weights: Path | None = None, say: Callable[[str], None] = _unsaid, **options: Any,
) -> _Run:  # fmt: skip
    """What a call asks; nothing is loaded yet."""
    folder, function, named = check_folder(results), name_of(question), _labelled(models)
    drawing = _Drawing(_sets(prompts), count, seed, rows, allow_first_token, takes(question, "behaviour"))
    variants = {label: {**options, **more} for label, more in (each or {"": {}}).items()}
    check_options(question, {name for one in variants.values() for name in one})
    bar = DelayedBar("answering") if progress is None else progress
    return _Run(folder, executor, function, named, drawing, variants, (dtype, device, threads), bar, weights, say)


@dataclass
class _Run:
    """One call: what is asked, what is there, what came of the rest."""

    folder: Path
    executor: Executor
    function: str
    models: Mapping[str, Model]
    drawing: _Drawing
    variants: Mapping[str, Mapping[str, Any]]
    how: tuple[str, str, int]  # precision, device, threads
    progress: Progress
    weights: Path | None = None  # where models that are only in memory are written; None: in the folder
    say: Callable[[str], None] = _unsaid
    questions: dict[Place, OneQuestion] = field(default_factory=dict)
    reused: dict[int, Any] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        if not self.models or not self.drawing.sets:
            raise ConfigError("across needs one model and one set of prompts at least")

    def answers(self) -> dict[Place, Any]:
        """What is kept, and what is computed now.

        Raises:
            WorkerFailed: some are missing.
        """
        try:
            aside = self.executor.run(AskJob(str(self.folder.resolve())), self.missing(), lambda unit, key: self._count())
        finally:
            if self.executor.leader:
                shutil.rmtree(self.folder / WEIGHTS, ignore_errors=True)
        if aside:
            raise WorkerFailed(
                f"{len(aside)} of {len(self.questions)} questions failed three times; the other answers are kept in "
                f"{self.folder}: " + "; ".join(map(str, aside[:3]))
            )
        return {place: self._answer(one) for place, one in self.questions.items()}

    def missing(self) -> Iterator[OneQuestion]:
        """Questions that no answer is kept of; a model is loaded when its turn comes, since its hash is part of each key."""
        for label, model in self.models.items():
            left, before = [], len(self.reused)
            for place, one in self._questions(label, model):
                self.questions[place] = one.head
                answer = answer_of(self.folder, one)
                if answer is None:
                    left.append(one)
                else:
                    self.reused[one.number] = answer
            if known := len(self.reused) - before:
                self.say(f"{label}: {known} of {known + len(left)} answers finished before, {len(left)} left")
            yield from left

    def _questions(self, label: str, model: Model) -> Iterator[tuple[Place, OneQuestion]]:
        (dtype, device, threads), step = self.how, _step(model)
        options = (*AS_USUAL, *step)
        source = ModelSource.of(_name(model), dtype=dtype, device=device, threads=threads, options=options)
        network = source.live
        assert network is not None
        shape = [(name, list(x.shape)) for name, x in network.named_parameters()]
        if self.executor.travels:
            source = source.travelling(self.weights or self.folder / WEIGHTS)
        words = None if network.tokenizer is None else to_saved(network.tokenizer)
        about = [self.function, source.hash, words, source.dtype, source.device, threads, dict(source.versions)]
        for set_label, called, some, more in self.drawing.of(network):
            for variant, given in self.variants.items():
                place, whole = (label, called, variant), {**given, **more}
                key = digest([*about, described(some, "prompts"), described(whole)])
                kind = digest([shape, set_label, variant])
                yield place, OneQuestion(len(self.questions), _place_text(place), key, kind, self.function, source, some, whole)

    def _answer(self, question: OneQuestion) -> Any:
        found = self.reused.get(question.number)
        found = answer_of(self.folder, question) if found is None else found
        if found is None:
            raise NotReadable(f"the answer {question.path(self.folder)} is missing or damaged; run the same call again")
        return found

    def _count(self) -> None:
        self.done += 1
        self.progress(float(self.done), float(max(self.done, len(self.questions) - len(self.reused))))


def _labelled(models: Any) -> dict[str, Model]:
    """Models by their labels.

    Raises:
        ConfigError: two have the same label.
    """
    if isinstance(models, Mapping):
        return {str(label): one for label, one in models.items()}
    several = [models] if isinstance(models, Model) else list(models)
    found = {str(one.cfg.model_name if isinstance(one, Transformer) else one): one for one in several}
    if len(found) < len(several):
        raise ConfigError("two models have the same name; give a mapping with a label for each")
    return found


def _name(model: Model) -> Model:
    """The name without its checkpoint."""
    return model.rpartition("@")[0] if _step(model) and isinstance(model, str) else model


def _step(model: Model) -> tuple[tuple[str, Any], ...]:
    """The checkpoint that `NAME@STEP` names."""
    name, _, step = model.rpartition("@") if isinstance(model, str) else ("", "", "")
    return (("checkpoint_value", int(step)),) if name and step.isdecimal() else ()


def _sets(prompts: Any) -> dict[str, Any]:
    """Sets of prompts by their labels."""
    if isinstance(prompts, Mapping):
        return {str(label): one for label, one in prompts.items()}
    if isinstance(prompts, Prompts | Behaviour | str | Path):
        prompts = [prompts]
    sets = list(prompts)
    return {_called(one, number): one for number, one in enumerate(sets)}


def _called(one: Any, number: int) -> str:
    return str(one) if isinstance(one, str | Path) else one.name if isinstance(one, Behaviour) else f"prompts {number}"


@dataclass(frozen=True)
class _Drawing:
    """How each model gets its prompts."""

    sets: Mapping[str, Any]
    count: int | None
    seed: int
    rows: int | None
    allow_first_token: bool
    named: bool  # whether the function is told of the behaviour

    def of(self, model: Transformer) -> Iterator[tuple[str, str, Prompts, dict[str, Any]]]:
        """Sets in a model's tokens, or parts of them: the set's label, the part's, its prompts, more options."""
        for label, one in self.sets.items():
            behaviour, whole = self._prompts_of(label, one, model)
            more = {"behaviour": behaviour} if self.named and behaviour is not None else {}
            if self.rows is None:
                yield label, label, whole, more
                continue
            for start in range(0, len(whole), self.rows):
                end = min(start + self.rows, len(whole))
                yield label, f"{label} {start} to {end - 1}", whole[start:end], more

    def _prompts_of(self, label: str, one: Any, model: Transformer) -> tuple[Behaviour | None, Prompts]:
        """Prompts, and their behaviour where they are drawn.

        Raises:
            ConfigError: it is neither.
        """
        if isinstance(one, Prompts):
            return None, one
        if isinstance(one, Path):
            return None, Prompts.read(one, model, allow_first_token=self.allow_first_token)
        if not isinstance(one, str | Behaviour):
            raise ConfigError(
                f"{label} is a {type(one).__name__}; give Prompts (Prompts.of_texts makes them), a file or a behaviour"
            )
        return of_behaviour(one if isinstance(one, str) else one.name, model, self.count, self.seed)
