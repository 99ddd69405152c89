"""An explanation as files: `program.py`, which runs alone, `explanation.json`, and a page to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cutaway.explain.explaining import Explanation
from cutaway.explain.substitution import Node, name_of
from cutaway.explain.verdict import EXPLAINED
from cutaway.programs import as_python, line_as_python, to_dict
from cutaway.programs.language import Attend, Line, reads
from cutaway.view import Code, Section, bar_chart, page
from cutaway.view.pages import Fact, Facts
from cutaway.writing import check_folder, write, write_json

PROGRAM, NUMBERS, PAGE = FILES = "program.py", "explanation.json", "explanation.html"
MEANINGS = {
    "M": "program and model agree on unseen inputs, corrected for chance",
    "S": "loss kept when activations are exchanged among inputs that the program calls equal",
    "C": "share of the exact effect inside the nodes that the program stands for",
}


def roles(explanation: Explanation) -> dict[str, list[str]]:
    """Variable → the nodes of the graph that can hold it: heads from its layer on for a head's line, MLPs for the others."""
    depths: dict[str, int] = {}
    found: dict[str, list[str]] = {}
    for line in explanation.program.live:
        below = max((depths.get(name, 0) for name in reads(line)), default=0)
        depths[line.name] = below + isinstance(line, Attend)
        found[line.name] = [name_of(node) for node in sorted(_holders(explanation, line, depths[line.name]), key=_order)]
    return found


def _holders(explanation: Explanation, line: Line, depth: int) -> Iterator[Node]:
    for node in explanation.graph.inside:
        if (node[1] is not None) == isinstance(line, Attend) and node[0] >= depth - 1:
            yield node


def _order(node: Node) -> tuple[int, int]:
    return node[0], -1 if node[1] is None else node[1]


def numbers(explanation: Explanation) -> dict[str, Any]:
    """Everything that was found, as plain data."""
    nodes_of = roles(explanation)
    claims = [
        {"line": line_as_python(explanation.program, line), "variable": line.name, "nodes": nodes_of[line.name]}
        for line in explanation.program.live
    ]
    graph, far, spectrum = explanation.graph, explanation.far, explanation.spectrum
    return {
        "name": explanation.name,
        **explanation.verdict.to_json(),
        "scrubbing": explanation.scrubbing,
        "alone": {name_of(node): share for node, share in explanation.alone.items()},
        "claims": claims,
        "graph": {"inside": list(map(name_of, graph.inside)), "effects": {name_of(node): e for node, e in graph.effects.items()}},
        "tested": {name_of(node): share for node, share in explanation.scrubbed.tested.items()},
        "beyond": None if far is None else dataclasses.asdict(far),
        "parts": dataclasses.asdict(explanation.parts),
        "spectrum": None if spectrum is None else dataclasses.asdict(spectrum),
        "program": to_dict(explanation.program),
    }  # fmt: skip


def summary(explanation: Explanation) -> str:
    """A few lines for the terminal."""
    v = explanation.verdict
    lines = [f"{explanation.name}: {v.verdict}"]
    lines += [f"  {reason}" for reason in v.reasons]
    lines += [f"  {letter}  {score}  {MEANINGS[letter]}" for letter, score in (("M", v.match), ("S", v.scrubbed), ("C", v.graph))]
    lines.append("  controls: " + ", ".join(f"{name} {value:.2f}" for name, value in v.controls.items()))
    lines.append(f"  the program takes {v.bits:.0f} bits, {v.bits / v.of_bits:.2%} of the parameters'")
    lines += [f"  {note}" for note in (*v.notes, *explanation.parts.sentences())]
    if explanation.spectrum is not None:
        lines.append(f"  {explanation.spectrum.sentence()}")
    return "\n".join(lines)


def html(explanation: Explanation, facts: Sequence[Fact] = ()) -> str:
    """The page; `facts` (the command, the time) stand at its head."""
    v, nodes_of = explanation.verdict, roles(explanation)
    beside = [
        f"{line_as_python(explanation.program, line)}  — {_nodes_text(nodes_of[line.name])}" for line in explanation.program.live
    ] or ["the answer is the same for every input; nothing is read"]
    effects = {name_of(node): effect for node, effect in explanation.graph.effects.items()}
    scores = [f"{letter} = {score}: {MEANINGS[letter]}" for letter, score in (("M", v.match), ("S", v.scrubbed), ("C", v.graph))]
    first = "Every test was passed." if v.verdict == EXPLAINED else "; ".join(v.reasons).capitalize() + "."
    sections = [
        Section("The program", [Code(as_python(explanation.program))]),
        Section("Each line, and what holds it in the model", [beside]),
        Section("Tests", [scores, [f"control, {name}: {value:.2f}" for name, value in v.controls.items()], list(v.notes)]),
        Section(
            "Which nodes carry the answers",
            [
                bar_chart(
                    list(effects), list(effects.values()), title="Loss when a node is exchanged at random", value_name="nats"
                )
            ],
        ),
    ]
    if said := explanation.parts.sentences():
        sections.append(Section("What single nodes do", [said]))
    if explanation.spectrum is not None:
        s = explanation.spectrum
        what = "frequency" if s.cyclic else "representation"
        chart = bar_chart(list(s.names), list(s.of_logits), title=f"Share of the logits' variance by {what}")
        sections.append(Section("What carries the product", [s.sentence(), chart]))
    title = f"{explanation.name}: {v.verdict}"
    intro: list[Any] = [*([Facts(facts)] if facts else []), first]
    return page(title, sections, intro=intro, subtitle="A trained model as a program, tested inside the model").html()


def _nodes_text(nodes: list[str]) -> str:
    return f"held by {', '.join(nodes)}" if nodes else "made of the embedding and what later nodes read"


def save(explanation: Explanation, folder: str | Path, facts: Sequence[Fact] = (), *, replace: bool = False) -> list[Path]:
    """Write the three files.

    Raises:
        NotWritten: the folder takes none.
        AlreadyThere: one of them exists, and `replace` is off.
    """
    folder = check_folder(folder, FILES, replace=replace)
    text = json.dumps(numbers(explanation), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return [
        write(folder / PROGRAM, as_python(explanation.program)),
        write_json(folder / NUMBERS, text),
        write(folder / PAGE, html(explanation, facts)),
    ]
