"""A report: questions asked of a study one after the other, what they took planned before, and what is done kept.

`make` stops at a model that does not do the behaviour, unless told to go on: then values are shown and nothing is claimed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import NotFinite, PromptError, UnknownName, nearest
from cutaway.model.frozen_norms import norms_of
from cutaway.numbers_given import options
from cutaway.prompts import Prompts
from cutaway.report import page
from cutaway.report.findings import Finding, none, without_claims
from cutaway.report.questions import QUESTIONS
from cutaway.report.sentences import sentence
from cutaway.report.study import Study
from cutaway.runs.hashes import model_hash
from cutaway.tasks.behaviour import Behaviour
from cutaway.tasks.given import fitted
from cutaway.view.pages import Fact
from cutaway.writing import check_folder, write, write_json

HTML, JSON = FILES = "report.html", "report.json"
TELLING = 20  # prompts: fewer hardly tell a model that does a behaviour from one that does not
Watch = Callable[[str, float, float], None]
"""Told which question is being asked, how many forward passes are done, and of how many; the last is the plan's."""


@dataclass(frozen=True)
class ReportPlan:
    """What a report will take: forward passes by question, seconds of one, bytes of what is kept."""

    passes: Mapping[str, float]
    seconds: float
    memory: int

    @property
    def time(self) -> float:
        """Seconds, about."""
        return 2 + sum(self.passes.values()) * self.seconds

    def summary(self) -> str:
        """One line."""
        minutes = "less than a minute" if self.time < 50 else f"about {max(1, round(self.time / 60))} min"
        return f"{len(self.passes)} questions, {minutes}, about {self.memory / 2**30:.1f} GiB of activations"


@dataclass(frozen=True, eq=False)
class Report:
    """A finished report, or what there is of one.

    Args:
        about: the model, the prompts and how they were run.
        findings: question → what it found.
        left: questions that were not asked, since something interrupted.
    """

    about: Mapping[str, Any]
    findings: Mapping[str, Sequence[Finding]]
    left: Sequence[str] = ()
    study: Study | None = field(default=None, repr=False)

    def sentences(self) -> Iterator[tuple[str, str]]:
        """Heading and sentence of all that speaks."""
        for name, found in self.findings.items():
            yield from ((QUESTIONS[name].heading, sentence(one)) for one in found if not one.silent)

    def numbers(self) -> dict[str, Any]:
        """What `report.json` holds."""
        listed = [
            {"question": name, **one.to_json(), "sentence": sentence(one)}
            for name, found in self.findings.items()
            for one in found
        ]
        return {**self.about, **({"left": list(self.left)} if self.left else {}), "findings": listed}

    def json(self) -> str:
        """The same as text."""
        return json.dumps(self.numbers(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def html(self, facts: Sequence[Fact] = ()) -> str:
        """The page, which needs nothing else; `facts` (the command, the time) stand at its head."""
        headings = {name: QUESTIONS[name].heading for name in self.findings}
        return page.html(self.about, headings, self.findings, self.left, facts)

    def text(self) -> str:
        """What a terminal shows: the sentences that claim something, by question."""
        lines = [page.title(self.about), page.subtitle(self.about), ""]
        for name, found in self.findings.items():
            said = [f"  {sentence(one)}" for one in found if not one.silent][:4]
            lines += [QUESTIONS[name].heading, *said] if said else []
        return "\n".join(lines)

    def save(self, folder: str | Path, facts: Sequence[Fact] = (), *, replace: bool = False) -> tuple[Path, Path]:
        """Write `report.html` and `report.json`.

        Raises:
            NotWritten: the folder or the disk does not take them.
            AlreadyThere: one of them exists, and `replace` is off.
        """
        folder = check_folder(folder, FILES, replace=replace)
        html, numbers = self.html(facts), self.json()  # both before either is written
        return write(folder / HTML, html), write_json(folder / JSON, numbers)


def joined(parts: Sequence[Report]) -> Report:
    """One report of several that asked the same model and prompts different questions, in the usual order."""
    found = {name: one for part in parts for name, one in part.findings.items()}
    return Report(parts[0].about, {name: found[name] for name in QUESTIONS if name in found})


def chosen(names: Sequence[str] | None) -> list[str]:
    """The questions to ask, in order.

    Raises:
        UnknownName: there is no such question; lists those there are.
    """
    for name in names or ():
        if name not in QUESTIONS:
            raise UnknownName(f"no question called {name!r}{nearest(name, QUESTIONS)}; there are {', '.join(QUESTIONS)}")
    return [name for name in QUESTIONS if not names or name in names]


def planned(study: Study, questions: Sequence[str]) -> ReportPlan:
    """What the questions will take, from one run that is timed."""
    # Not timed is the first run of a process, which also starts threads, chooses kernels and reads weights from disk.
    study.run(study.prompts[:1], study.streams[-1:])
    begin = time.perf_counter()
    study.run(study.prompts, study.streams[-1:])
    seconds = time.perf_counter() - begin
    cfg, (batch, length) = study.model.cfg, study.prompts.tokens.shape
    kept = batch * length * cfg.n_layers * (3 * cfg.d_model + cfg.n_heads * length) + 3 * len(study.places[0]) * cfg.d_vocab_out
    passes = {name: QUESTIONS[name].passes(study) for name in questions if not QUESTIONS[name].lacks(study)}
    return ReportPlan(passes, seconds, 4 * kept)


@options(size=2, seed=0)
def make(
    model: Any,
    prompts: Prompts,
    behaviour: Behaviour | None = None,
    *,
    name: str = "the model",
    vocab: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    above: bool = False,
    size: int | None = None,
    seed: int = 0,
    anyway: bool = False,
    watch: Watch = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
    each: Callable[[Report], None] = lambda _: None,
) -> Report:
    """The report on a model and a behaviour.

    Args:
        prompts: with right answers; minimal pairs and wrong answers where there are some.
        behaviour: names of sources, classes, features and mistakes.
        vocab: what tokens are called, where neither the behaviour nor a tokenizer says it.
        questions: names of some; None: all.
        above: answers are all tokens with a logit above 0, instead of the likeliest one.
        size: how many prompts, at most; by default 300 of a small model and 48 of a large one.
        anyway: go on with a model that is at chance; nothing is claimed then.
        say: given the plan's line before anything long is run.
        each: given the report so far after each question.

    Raises:
        ConfigError: `size` or `seed` is no such number.
        PromptError: no answers, or the model does not do the behaviour.
        ContextTooLong, TokenError: prompts that the model cannot read.
        NotFinite: logits that are no numbers.
    """
    selected = chosen(questions)
    vocab = vocab if vocab is not None or behaviour is None else behaviour.vocabulary or None
    study = Study(model, fitted(prompts, model, size, seed), behaviour or Behaviour(), vocab, above, seed)
    study.check()
    plan = planned(study, selected)
    say(plan.summary())
    whole = float(sum(plan.passes.values()))
    watch("running the model", 0.0, whole)
    if not bool(study.logits.isfinite().all()):
        raise NotFinite(f"{name} gives logits that are no finite numbers; train or load it again")
    if study.at_chance and not anyway:
        rest = "so few prompts cannot tell, ask about more" if len(study.prompts) < TELLING else "there is nothing to explain"
        raise PromptError(
            f"{name} does not do this, on {study.on}: its accuracy is {study.accuracy.text('share')}, and always the same "
            f"answer gives {study.chance.text('share')}; {rest} "
            "(--anyway shows the values and claims nothing)"
        )
    findings: dict[str, Sequence[Finding]] = {}
    about = _about(study, name, behaviour)
    done = 0.0
    for number, one in enumerate(selected):
        watch(QUESTIONS[one].heading, done, whole)
        findings[one] = _findings_of(study, one)
        done += plan.passes.get(one, 0.0)
        each(Report(about, dict(findings), selected[number + 1 :], study))
    watch("done", done, done)
    return Report(about, findings, (), study)


def _findings_of(study: Study, name: str) -> list[Finding]:
    """What one question finds; the reason where it cannot be asked; nothing is claimed of a model at chance."""
    question = QUESTIONS[name]
    missing = question.lacks(study)
    found = [none(question.heading, missing)] if missing else question.ask(study)
    return [without_claims(one) for one in found] if study.at_chance and name != "performance" else found


def _about(study: Study, name: str, behaviour: Behaviour | None) -> dict[str, Any]:
    cfg = study.model.cfg
    return {
        "model": name,
        "hash": model_hash(study.model),
        "behaviour": None if behaviour is None else behaviour.name,
        "summary": None if behaviour is None else behaviour.summary,
        "prompts": len(study.prompts),
        "answers": len(study.places[0]),
        "seed": study.seed,
        "read_out": "every token with a logit above 0" if study.above else "the likeliest token",
        "at_chance": study.at_chance,
        "shape": {"n_layers": cfg.n_layers, "n_heads": cfg.n_heads, "d_model": cfg.d_model, "attn_only": cfg.attn_only},
        "norms": list(norms_of(cfg)) if cfg.n_layers <= 2 else len(norms_of(cfg)),
        **({"taken_for": study.model.provenance["taken_for"]} if "taken_for" in study.model.provenance else {}),
    }
