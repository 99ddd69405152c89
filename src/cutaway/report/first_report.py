"""The report on models of first unique characters: their checkpoints, and `report.json` under the keys of the first report.

Every number is one of the general report's; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutaway.errors import ConfigError
from cutaway.numbers_given import options
from cutaway.report import reporting
from cutaway.report.findings import Finding
from cutaway.runs.results import plain
from cutaway.tasks import FirstUniqueCharTask
from cutaway.tasks.first_unique_checkpoints import network

LARGEST = 20_000  # sequences: beyond that, activations of all of them no longer fit a small machine
QUESTIONS = ("performance", "examples", "norms", "attention", "attribution", "ablation", "roles", "failures", "sets")
"""What has to be asked for every key."""


@dataclass(frozen=True, eq=False)
class FirstReport(reporting.Report):
    """A report whose `report.json` has the first report's keys."""

    task: Mapping[str, Any] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """Every number, by key; NaN is None."""
        assert self.study is not None
        found = numbers((one for some in self.findings.values() for one in some), self.study.heads)
        return {**self.task, **plain(found)}


@options(size=2, seed=0)  # (of one sequence, the mean over sequences is that sequence)
def make(
    checkpoint: str | Path | None = None, *, size: int = 1000, seed: int = 42, watch: reporting.Watch = lambda *_: None
) -> FirstReport:
    """The report on a model of first unique characters; one that learned nothing gets one too, which claims nothing.

    Args:
        checkpoint: a file of weights, `.pt` or `.safetensors`; the bundled model without.
        size, seed: how many sequences are drawn to run on, and from which seed.

    Raises:
        ConfigError: `size` is not between 2 and 20,000, or the model is of another shape than the report reads.
        CheckpointError, WeightsMismatch: the file is missing, damaged, unsafe or holds other weights.
    """
    if size > LARGEST:
        raise ConfigError(f"size={size} is more than {LARGEST:,} sequences")
    model, letters = network(checkpoint)
    name = "the bundled model" if checkpoint is None else Path(checkpoint).name
    task = FirstUniqueCharTask(tuple(letters), model.cfg.n_ctx)
    made = reporting.make(
        model, task.prompts(size, seed), task, name=name, vocab=task.vocabulary, questions=QUESTIONS, size=size, seed=seed,
        anyway=True, watch=watch,
    )  # fmt: skip
    shape = {key: getattr(model.cfg, key) for key in ("n_layers", "n_heads", "d_model", "d_head", "n_ctx")}
    about = {"task": task.name, "model": name, "size": size, "seed": seed, "letters": letters, "shape": shape}
    return FirstReport(made.about, made.findings, made.left, made.study, about)


SAME = (
    "loss", "accuracy", "mean_correct_probability", "min_correct_probability", "mistakes", "positions",
    "sequences_without_mistake", "by_position", "examples", "last_logits", "norm_scales", "detectors", "qk_quadrants", "pathways",
    "position_1_score", "responsible", "responsible_by_attribution", "ablations", "layer_1_scores", "layer_0_outputs",
    "layer_1_outputs", "full_circuits", "mistakes_by_kind", "worst", "loss_in_mistakes", "adversarial",
)  # fmt: skip
SOURCES = ("?", "the letter itself", "first instances", "repeats")
RENAMED = {"repeated tokens": "repeated letters", "tokens that did not occur": "letters that did not occur"}
JUST_READ = "the answer is the letter just read"
KINDS = ("the answer is ?", JUST_READ, "the answer is an earlier letter")
REPEATED, ITSELF = "occurrences of a repeated letter, from the answer", "position 1, from itself, from the answer"


def numbers(findings: Iterable[Finding], heads: Sequence[str]) -> dict[str, Any]:
    """Every number under its old key; `heads` are the network's, half of them of layer 0."""
    listed = list(findings)
    tree = {key: value for one in listed for key, value in one.to_json().get("numbers", {}).items() if key != "attention"}
    looks = {name: one for one in listed for name in one.numbers.get("attention", ())}
    early, late = heads[: len(heads) // 2], heads[len(heads) // 2 :]
    one, pairs, five = (tree["sets"][name] for name in ("one letter", "pairs of letters", "five letters in pairs"))
    read, null = tree["by_class"].get(JUST_READ, {}), tree["by_other_answer"].get("?", {})
    added = tree["attribution"]
    newest = [by for name in (JUST_READ, "the answer is the first letter") if (by := five["by_kind"].get(name))]
    return {
        **{key: tree[key] for key in SAME},
        "by_kind": {kind: _some(tree["by_kind"].get(kind, {"positions": 0}), "positions", "accuracy", "loss") for kind in KINDS},
        "attention": {
            "to_occurrences_from_repeat": _of_heads(looks.get(REPEATED), early),
            "position_1_to_itself": _of_heads(looks.get(ITSELF), early),
            "even": looks["the token itself"].numbers["even_attention"] if "the token itself" in looks else None,
        },
        "pairs": {"tokens": pairs["text"], "attention_to_same": _some(pairs["attention"].get(REPEATED, {}), *early)},
        "attribution": {**_some(added, "overall", "left_over", "by_position"),
                        **{by: _some(added[by], *late) for by in ("by_duplicate", "by_correct")}},
        "position_1": _position_1(one, heads),
        "first_instances": {
            "positions": tree["by_kind"].get(JUST_READ, {}).get("positions", 0),
            "accuracy": tree["by_kind"].get(JUST_READ, {}).get("accuracy"),
            "mean_probability": tree["by_kind"].get(JUST_READ, {}).get("mean_correct_probability"),
            **_some(read, "responsible_head", "last_layer", "attention_of_responsible_to_it"),
            "pairs": {"right": round(sum(by["positions"] * (by["accuracy"] or 0) for by in newest)),
                      "of": sum(by["positions"] for by in newest)},
        },
        "questions": {
            "new_letters": {
                "logits": _renamed(read.get("logits", {})),
                "by_component": {name: _renamed(by) for name, by in read.get("by_component", {}).items()},
                "values": read.get("values", {}),
                **{name: _some(read.get(name, {}), *SOURCES) for name in ("sources", "lead")},
            },
            "null": {**null, "bias_and_position": null and null["attribution"]["bias"] + null["attribution"]["pos_embed"],
                     "circuits": tree["circuits"]},
            "first_instances_passed_over": tree["passed_over"],
            "position": tree["order"],
            "layer_1_positions": tree["origins"],
        },
    }  # fmt: skip


def _position_1(tree: Mapping[str, Any], heads: Sequence[str]) -> dict[str, Any]:
    """Of sequences of one letter: what each head adds to it, and how it attends."""
    by = {head: {letter: x for letter, x in tree["attribution"]["by_correct"][head].items() if letter != "?"} for head in heads}
    words = next(iter(by.values()))
    looks = tree["attention"].get(ITSELF, {})
    return {
        "right": tree["accuracy"],
        "attribution": {head: list(values.values()) for head, values in by.items()},
        "self_attention": {head: sum(values.values()) / len(values) for head, values in looks.items()},
        "largest": {word: max(heads, key=lambda head: abs(by[head][word])) for word in words},
    }


def _of_heads(finding: Finding | None, heads: Sequence[str]) -> dict[str, float]:
    return {} if finding is None else {head: finding.values[head].value for head in heads}


def _some(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: tree.get(key) for key in keys}


def _renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(key, key): value for key, value in tree.items()}
