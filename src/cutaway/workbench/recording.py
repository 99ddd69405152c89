"""A session as a record that `cutaway replay` runs again, as Python code, and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutaway import records
from cutaway.errors import PromptError
from cutaway.runs.sweep import SweepResult, sweep
from cutaway.view import Section, page
from cutaway.view.pages import Code
from cutaway.workbench import prompt_pair, switches
from cutaway.workbench.runs import Between, nothing
from cutaway.workbench.session import HistoryStep, Session, StateRuns
from cutaway.workbench.state import AnySwitch, EdgeSwitch, HeadSwitch, LookSwitch, MlpSwitch, SteerSwitch


def sweeps(session: Session, between: Between = nothing) -> dict[str, tuple[SweepResult, list[HistoryStep]]]:
    """The steps that switch something, as sweeps: one for each pair of prompts and metric, with a cell for each step.

    Every cell runs in a batch of its own from the layer of its first edit, as on the page.

    Raises:
        PromptError: no step switches anything.
    """
    groups: dict[Any, list[tuple[HistoryStep, StateRuns]]] = {}
    for step in session.steps:
        if step.state.switches:
            found = session.find(step.state, prompt_pair.pair_of(session.model, step.state), between)
            key = (found.own.tokens.tolist().__repr__(), found.metric.name, found.answers, found.at)
            groups.setdefault(key, []).append((step, found))
    if not groups:
        raise PromptError("there is nothing to record: no step has a switch on")
    made = {}
    for number, group in enumerate(groups.values(), 1):
        first = group[0][1]
        result = sweep(session.model, first.own.tokens, [found.edits for _, found in group], first.metric, skip="layers", audit=0)
        made[f"prompts-{number}"] = result, [step for step, _ in group]
    return made


def save(session: Session, folder: Path, between: Between = nothing) -> tuple[Path, float]:
    """Write the record of a session; gives back where, and the largest difference from what the page showed.

    Raises:
        PromptError: no step switches anything.
        CheckpointError: there is a record already, or the folder takes none.
    """
    made = sweeps(session, between)
    records.check_free(folder, made if len(made) > 1 else ())
    apart = 0.0
    for result, steps in made.values():
        for step, value in zip(steps, result.values.data.flatten().tolist(), strict=True):
            apart = max(apart, abs(value - step.value) if step.value is not None else 0.0)
    results = {name: result for name, (result, _) in made.items()}
    records.write(folder, results if len(results) > 1 else next(iter(results.values())), session.name)
    return folder, apart


# The same as code.

OPENING = """import torch

import cutaway
from cutaway import HookedTransformer, edits, metrics

model = HookedTransformer.from_pretrained({name!r}, device="cpu")
tokens = {own}
"""
SITES = {
    "head": "blocks.{0.layer}.attn.hook_z", "mlp": "blocks.{0.layer}.hook_mlp_out", "position": "blocks.{0.layer}.hook_resid_pre",
}  # fmt: skip


def code(session: Session, found: StateRuns) -> str:
    """Python code that does what is switched now, through `import cutaway`, and prints the metric before and after."""
    now = session.state
    text = OPENING.format(name=session.name, own=f"torch.tensor({found.own.tokens.tolist()})")
    if found.other is not None:
        text += f"other = torch.tensor({found.other.tokens.tolist()})\n"
    lines = [line for one in now.switches for line in _lines(one, found)]
    names = sorted({name for one in now.switches for name in _sites(one, found)})
    if names:
        text += f"sites = {names}\n_, clean = model.run_with_cache(tokens, names_filter=sites)\n"
        if any(getattr(one, "how", "") in ("patch", "resample") for one in now.switches):
            text += "_, theirs = model.run_with_cache(other, names_filter=sites)\n"
    text += "\nchanges = [\n" + "".join(f"    {line}\n" for line in lines) + "]\n"
    right, wrong = [found.answers.right], [found.answers.wrong]
    given = {
        "logit difference": f"logit_difference({right}, {wrong}, [{found.at}])", "KL": f"kl([{found.at}])",
        "probability": f"probability({right}, [{found.at}])", "log-probability": f"log_probability({right}, [{found.at}])",
    }  # fmt: skip
    text += f"metric = metrics.{given[now.metric]}\n"
    if not lines:
        return text + "logits = model(tokens)\nprint(metric(logits, logits))\n"
    text += 'result = cutaway.sweep(model, tokens, [changes], metric, skip="layers")\n'
    return text + "print(result.clean.data, result.values.data)\n"


def _sites(switch: AnySwitch, found: StateRuns) -> list[str]:
    """The sites that the code of a switch reads."""
    if isinstance(switch, EdgeSwitch):
        writer, _ = switches.edge(found.own.model, switch)
        return [_written_at(writer)[0]]
    if isinstance(switch, HeadSwitch | MlpSwitch) or getattr(switch, "how", "") in ("mean", "patch", "resample"):
        kind = "head" if isinstance(switch, HeadSwitch) else "mlp" if isinstance(switch, MlpSwitch) else "position"
        return [SITES[kind].format(switch)] if getattr(switch, "how", "") in ("mean", "patch", "resample") else []
    return []


def _written_at(writer: Any) -> tuple[str, str]:
    """The site that holds what a component writes, and what to take of it."""
    if writer.kind == "head":
        return f"blocks.{writer.layer}.attn.hook_result", f"[:, :, {writer.index}]"
    if writer.kind == "mlp":
        return f"blocks.{writer.layer}.hook_mlp_out", ""
    return f"hook_{writer.kind}", ""


def _lines(switch: AnySwitch, found: StateRuns) -> list[str]:
    """A switch as code."""
    comment = f"# {switches.label(switch)}".replace("\n", " ")
    if isinstance(switch, LookSwitch):
        place = f'("pattern", {switch.layer}), heads={switch.head}, positions={switch.query}, sources={switch.key}'
        return [comment, f"edits.zero().at({place}),"]
    if isinstance(switch, SteerSwitch):
        made = f"cutaway.contrast_vectors(model, [{switch.plus!r}], [{switch.minus!r}], layers=[{switch.layer}])"
        return [comment, f"{made}[{switch.layer}].edit({switch.factor!r}),"]
    if isinstance(switch, EdgeSwitch):
        return [comment, _edge_line(switch, found)]
    kind = "head" if isinstance(switch, HeadSwitch) else "mlp" if isinstance(switch, MlpSwitch) else "position"
    site = SITES[kind].format(switch)
    change = {
        "zero": "edits.zero()", "scale": f"edits.scale({switch.factor!r})",
        "mean": 'edits.mean(clean, over=("pos",))', "patch": "edits.patch(theirs)",
        "resample": f"edits.replace(theirs[{site!r}][:, {_resampled_positions(found)}])",
    }[switch.how]  # fmt: skip
    where = [f"heads={switch.head}"] if isinstance(switch, HeadSwitch) else []
    where += [] if switch.position is None else [f"positions={switch.position}"]
    return [comment, f"{change}.at({', '.join([repr(site), *where])}),"]


def _resampled_positions(found: StateRuns) -> list[int]:
    assert found.other is not None
    return switches.random_positions(found.other.length, found.own.length).tolist()


def _edge_line(switch: EdgeSwitch, found: StateRuns) -> str:
    writer, _ = switches.edge(found.own.model, switch)
    site, part = _written_at(writer)
    own = f"clean[{site!r}]{part}"
    new = {
        "zero": "0", "scale": f"{switch.factor!r} * {own}", "mean": f"{own}.mean(1, keepdim=True)",
        "patch": f"theirs[{site!r}]{part}",
        "resample": f"theirs[{site!r}]{part}[:, {_resampled_positions(found) if found.other is not None else ''}]",
    }[switch.how]  # fmt: skip
    edit = switches.edit_of(switch, found.own, found.other)
    change, where = f"{new} - {own}", "" if edit.heads is None else f", heads={edit.heads}"
    change = f"({change})[:, :, None]" if edit.heads is not None else change
    return f"edits.add({change}).at({edit.site!r}{where}),"


# The page as a file.


def saved_page(session: Session, found: StateRuns) -> str:
    """What is on screen as one HTML file."""
    now, on_screen = session.state, session.on_screen
    unit = f" {found.metric.unit}" if found.metric.unit else ""
    value_text = f"{found.metric.name}: {found.before:.4f}{unit} without switches, {found.after:.4f}{unit} with them."
    prompts = [f"{side}: {''.join(words)}" for side, words in session.pair.words.items()]
    on: Sequence[str] = [switches.label(one) for one in now.switches] or ["none"]
    sections = [Section("Prompts", [prompts]), Section("Switches", [list(on)], summary=value_text)]
    titles = {"next": "Next token", "map": "Map of the model", "attention": "Attention of the pinned heads", "lens": "Logit lens",
              "answer": "Answer"}  # fmt: skip
    sections += [Section(title, [on_screen[slot]]) for slot, title in titles.items() if slot in on_screen]
    if session.generated:
        sections.append(Section("Text", [session.generated]))
    steps = [f"{number}: {step.label}" + ("" if step.value is None else f" → {step.value:.4f}{unit}") for number, step in
             enumerate(session.steps)]  # fmt: skip
    sections += [Section("Steps", [steps]), Section("The same in Python", [Code(code(session, found))])]
    return page(f"Workbench: {session.name}", sections, subtitle=f"{now.side} prompt with {len(now.switches)} switches").html()
