"""What computed a result: the call, the model and its hash, the time, the prompts. `@with_provenance` on an analysis keeps it.

A result holds no model: it is only referred to, and looked at when somebody asks (a page, a file).
"""

from __future__ import annotations

import datetime
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from cutaway import __version__
from cutaway.errors import ShapeError, TokenError, nearest
from cutaway.model.transformer import Transformer
from cutaway.prompts import Prompts
from cutaway.runs.hashes import model_hash
from cutaway.runs.representation import short_repr
from cutaway.runs.results import Labelled, Result
from cutaway.tokens import to_str_tokens
from cutaway.view import Figure, Page, Section, page
from cutaway.view.pages import Code, Fact, Facts, Folded

P = ParamSpec("P")
R = TypeVar("R")
LONGEST = 60  # characters of an argument
MOST = 200  # prompts in a page
UNSAID = frozenset({"progress", "say"})  # arguments that say nothing about a result


def with_provenance(analysis: Callable[P, R]) -> Callable[P, R]:
    """An analysis whose result knows the call, the model and the prompts, as `result.provenance`."""
    named = inspect.signature(analysis)

    @functools.wraps(analysis)
    def recorded(*args: P.args, **options: P.kwargs) -> R:
        known(named, analysis.__name__, options)
        found = analysis(*args, **options)
        if isinstance(found, Result):
            object.__setattr__(found, "provenance", Provenance.of(analysis.__name__, named.bind(*args, **options).arguments))
        return found

    recorded.__dict__["keeps_provenance"] = True
    return recorded


def known(named: inspect.Signature, function: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that a function lacks, and say which is meant: `kind=` for `kinds=`.

    Raises:
        TypeError: as Python itself raises it.
    """
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in named.parameters.values()):
        return
    there = [name for name, one in named.parameters.items() if one.kind is not inspect.Parameter.VAR_POSITIONAL]
    for name in options:
        if name not in there:
            raise TypeError(f"{function}() has no option {name}={nearest(f'{name}', there)}; it takes {', '.join(there)}")


@dataclass(frozen=True, eq=False)
class Provenance:
    """The call that made a result.

    Args:
        call: as in Python; on the command line the command.
        when: the time, UTC.
        model: the model, if it still exists.
        prompts: what it ran on: `Prompts`, texts or tokens.
        known: what a file says of model and prompts, for a result that was loaded.
    """

    call: str
    when: str
    model: Callable[[], Transformer | None] = field(repr=False, default=lambda: None)
    prompts: Any = field(repr=False, default=None)
    known: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any]) -> Provenance:
        """The provenance of what `name` was called with."""
        model = next(filter(None, map(_network, arguments.values())), None)
        prompts = next((one for one in arguments.values() if isinstance(one, Prompts)), None)
        rest = [one for key, one in arguments.items() if key in ("tokens", "clean", "prompts", "text", "texts")]
        prompts = prompts if prompts is not None else next((one for one in rest if one is not None), None)
        return cls(_call(name, arguments), now(), _referred(model), prompts)

    def to_json(self) -> dict[str, Any]:
        """Everything in words, for a file; computes the model's hash."""
        if self.known:
            return dict(self.known)
        model = self.model()
        fields: dict[str, Any] = {"call": self.call, "when": self.when, "version": __version__}
        if model is not None:
            fields |= {"model": _model_line(model), "hash": model_hash(model)}
        if (prompts := _prompts(model, self.prompts)) is not None:
            rows = [list(row) for row in prompts.rows]
            fields["prompts"] = {"said": prompts.line, "columns": list(prompts.columns), "rows": rows}
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Provenance:
        """What `to_json` wrote."""
        return cls(str(fields["call"]), str(fields["when"]), known=dict(fields))

    def facts(self, *, call: str = "call") -> list[Fact]:
        """Model, hash, time, call and prompts, for the head of a page."""
        fields = self.to_json()
        found: list[Fact] = [(name, fields[name]) for name in ("model", "hash") if name in fields]
        made = filter(None, (fields["when"], f"cutaway {fields['version']}"))
        found += [("made", ", ".join(made)), (call, Code(fields["call"]))]
        if "prompts" in fields:
            prompts = fields["prompts"]
            found.append(("prompts", Folded(prompts["said"], prompts["columns"], prompts["rows"])))
        return found


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")


def measured(result: Result) -> list[Fact]:
    """Metric, clean and corrupted values, audit and baseline of a result, as far as it has them."""
    sweeps = list(getattr(result, "sweeps", {}).values()) or [one for one in (getattr(result, "sweep", None),) if one is not None]
    found: list[Fact] = []
    clean = getattr(sweeps[0] if sweeps else result, "clean", None)
    if isinstance(what := getattr(clean, "what", None), str):
        unit = getattr(clean, "unit", "")
        found.append(("metric", f"{what} ({unit})" if unit and unit != what else what))
    for name in ("clean", "corrupted"):
        value = getattr(result, name, None)
        number = float(value.data.nanmean()) if isinstance(value, Labelled) else value
        found += [(name, f"{number:.4g}")] if isinstance(number, int | float) else []
    if (audit := getattr(result, "audit", None)) is not None:
        found.append(("audit", str(audit)))
    baselines = [one.baseline for one in (*sweeps, result) if isinstance(getattr(one, "baseline", None), Result)]
    found += [("baseline", one.summary()) for one in dict.fromkeys(baselines)]
    return found


def page_of(result: Result, title: str = "", figures: Sequence[tuple[str, Figure]] | None = None) -> Page:
    """The page of a result: what it rests on, what it says, and its figures."""
    if figures is None:
        try:
            figures = [("", result.figure())]
        except ShapeError:  # one number: the summary stands for itself
            figures = []
    facts = [] if result.provenance is None else result.provenance.facts()
    return page_with(title or _title(result), [*facts, *measured(result)], [result.summary()], figures)


def page_with(title: str, facts: Sequence[Fact], texts: Sequence[str | Code], figures: Sequence[tuple[str, Figure]]) -> Page:
    """The page that every command and every result writes: facts, sentences, figures, in this order.

    Args:
        texts: paragraphs; a table as `Code`.
        figures: headings and figures; a single one needs no section.
    """
    several = len(figures) > 1
    sections = [Section(heading, [figure]) for heading, figure in figures] if several else []
    blocks: list[Any] = [Facts(facts), *texts]
    return page(title, sections, intro=[*blocks, *([] if several else [figure for _, figure in figures])])


def _title(result: Result) -> str:
    what = result.values.what
    return what[:1].upper() + what[1:]


# In words.


def _referred(model: Transformer | None) -> Callable[[], Transformer | None]:
    return (lambda: None) if model is None else weakref.ref(model)


def _network(value: Any) -> Transformer | None:
    """The model that an argument is or holds: a cache, a circuit's runner."""
    found = value if isinstance(value, Transformer) else getattr(value, "model", None)
    return found if isinstance(found, Transformer) else None


def _model_line(model: Transformer) -> str:
    cfg, about = model.cfg, model.provenance
    kind = cfg.original_architecture or "a network"
    place = about.get("file") or about.get("folder")
    where = about.get("repository") or (Path(str(place)).name if place else "")
    parts = [f"{kind} of {cfg.n_layers} layers × {cfg.n_heads} heads", str(cfg.torch_dtype).removeprefix("torch.")]
    parts += [f"from {where}"] if where else []
    parts += [f"taken for {about['taken_for']}"] if "taken_for" in about else []
    return f"{cfg.model_name or 'model'}: {', '.join(parts)}"


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    words = [_argument(key, value, first=not at) for at, (key, value) in enumerate(arguments.items()) if key not in UNSAID]
    return f"{name}({', '.join(filter(None, words))})"


def _argument(key: str, value: Any, *, first: bool) -> str:
    if isinstance(value, Mapping) and key in ("options", "kwargs"):
        return ", ".join(_argument(name, one, first=False) for name, one in value.items())
    text = _argument_text(value)
    return text if first or key in ("tokens", "clean", "corrupted", "source", "prompts") else f"{key}={text}"


def _argument_text(value: Any) -> str:
    """An argument, short."""
    if isinstance(value, Transformer):
        return "model"
    if isinstance(value, Prompts):
        return "prompts"
    if isinstance(value, list | tuple) and len(value) <= 8:
        return f"[{', '.join(map(_argument_text, value))}]"
    text = short_repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _prompts(model: Transformer | None, prompts: Any) -> Folded | None:
    """How many prompts, of what length; and each with what is known of it."""
    if isinstance(prompts, str):
        return Folded("one text", ["text"], [[prompts]])
    if isinstance(prompts, Tensor) and prompts.ndim in (1, 2) and not prompts.is_floating_point():
        rows = [prompts] if prompts.ndim == 1 else list(prompts)
        text = f"{len(rows)} row{'s' * (len(rows) != 1)} of {prompts.shape[-1]} tokens"
        return _cut(text, ["tokens"], [[_text(model, row)] for row in rows[:MOST]], len(rows))
    if isinstance(prompts, Prompts):
        return _of_prompts(model, prompts)
    if isinstance(prompts, Sequence) and prompts and all(isinstance(one, str) for one in prompts):
        return _cut(f"{len(prompts)} text{'s' * (len(prompts) != 1)}", ["text"], [[one] for one in prompts[:MOST]], len(prompts))
    return None


def _of_prompts(model: Transformer | None, prompts: Prompts) -> Folded:
    low, high = int(prompts.lengths.min()), int(prompts.lengths.max())
    pairs = " in pairs" if prompts.corrupted is not None else ""
    length = f"{low}" if low == high else f"{low} to {high}"
    text = f"{len(prompts)} prompt{'s' * (len(prompts) != 1)} of {length} token{'s' * (length != '1')}{pairs}"
    text += f"; roles {', '.join(prompts.roles)}" if len(prompts.roles) > 1 else ""
    named = {"clean" if pairs else "text": [_row(model, prompts, at) for at in range(min(MOST, len(prompts)))]}
    if (other := prompts.corrupted) is not None:
        named["corrupted"] = [_row(model, other, at) for at in range(min(MOST, len(prompts)))]
    for name, answers in (("answer", prompts.right), ("wrong", prompts.wrong)):
        if answers:
            named[name] = [_answers(model, row) for row in answers[:MOST]]
    return _cut(text, list(named), [list(row) for row in zip(*named.values(), strict=True)], len(prompts))


def _cut(text: str, columns: list[str], rows: list[list[str]], count: int) -> Folded:
    return Folded(text if count <= MOST else f"{text}; the first {MOST} of them", columns, rows)


def _row(model: Transformer | None, prompts: Prompts, at: int) -> str:
    return prompts.texts[at] if prompts.texts else _text(model, prompts.tokens[at, : int(prompts.lengths[at])])


def _text(model: Transformer | None, row: Tensor) -> str:
    tokenizer = None if model is None else model.tokenizer
    if tokenizer is None:
        return " ".join(map(str, row.tolist()))
    try:
        return "".join(map(str, to_str_tokens(tokenizer, row.cpu())))
    except TokenError:  # an identifier that the tokenizer lacks
        return " ".join(map(str, row.tolist()))


def _answers(model: Transformer | None, row: Mapping[int, tuple[int, ...]]) -> str:
    """The answers of one prompt; with their positions where there are several."""
    from torch import tensor

    words_at = {at: " or ".join(repr(_text(model, tensor([one]))) for one in ids[:4]) for at, ids in row.items() if ids}
    words_at = {at: words + (" …" if len(row[at]) > 4 else "") for at, words in words_at.items()}
    if len(words_at) == 1:
        return next(iter(words_at.values()))
    return ", ".join(f"{at}: {words}" for at, words in list(words_at.items())[:12])
