"""MMLU, questions with four answers (https://arxiv.org/abs/2009.03300), asked without examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cutaway.compat.text_data import load_dataset
from cutaway.errors import ShapeError, UnknownName, nearest

MMLU_ANSWER_LETTERS = ["A", "B", "C", "D"]
MMLU_SUBJECTS = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
]


def make_mmlu_data_loader(
    subjects: str | Sequence[str] | None = None, split: str = "test", num_samples: int | None = None
) -> list[dict[str, Any]]:
    """Questions of some subjects (all where None), at most `num_samples` of each: question, choices, answer, subject.

    Raises:
        UnknownName: there is no such subject.
        ModuleNotFoundError, Unreachable: as `load_dataset`.
    """
    wanted = MMLU_SUBJECTS if subjects is None else [subjects] if isinstance(subjects, str) else list(subjects)
    for subject in wanted:
        if subject not in MMLU_SUBJECTS:
            raise UnknownName(
                f"Invalid subject: {subject!r}{nearest(subject, MMLU_SUBJECTS)}; MMLU_SUBJECTS lists all {len(MMLU_SUBJECTS)}"
            )
    examples: list[dict[str, Any]] = []
    for subject in wanted:
        data = load_dataset("cais/mmlu", subject, split=split)
        count = len(data) if num_samples is None else min(num_samples, len(data))
        examples += [
            {name: data[i][name] for name in ("question", "choices", "answer")} | {"subject": subject} for i in range(count)
        ]
    print(f"Loaded {len(examples)} MMLU examples from {len(wanted)} subject(s)")
    return examples


@torch.inference_mode()
def mmlu_eval(
    model: Any,
    tokenizer: Any = None,
    subjects: str | Sequence[str] | None = None,
    split: str = "test",
    num_samples: int | None = None,
) -> dict[str, Any]:
    """How often the letter of the right answer is the likeliest of the four: `accuracy`, and by subject."""
    tokenizer = tokenizer or model.tokenizer
    examples = make_mmlu_data_loader(subjects=subjects, split=split, num_samples=num_samples)
    if not examples:
        raise ShapeError("there are no questions to ask")
    letters = torch.tensor([_token(tokenizer, letter) for letter in MMLU_ANSWER_LETTERS])
    right: dict[str, list[bool]] = {}
    for example in examples:
        tokens = torch.tensor([tokenizer.encode(_question_text(example))], device=model.cfg.device)
        logits = model(tokens, return_type="logits")[0, -1].cpu()
        best = int(logits[letters[: len(example["choices"])]].argmax())
        right.setdefault(example["subject"], []).append(best == example["answer"])
    correct = sum(map(sum, right.values()))
    return {
        "accuracy": correct / len(examples),
        "num_correct": correct,
        "num_total": len(examples),
        "subject_scores": {subject: sum(answers) / len(answers) for subject, answers in right.items()},
    }


def _question_text(example: dict[str, Any]) -> str:
    """The question as the model reads it."""
    choices = "".join(f"{letter}. {choice}\n" for letter, choice in zip(MMLU_ANSWER_LETTERS, example["choices"], strict=False))
    return f"Question: {example['question']}\nChoices:\n{choices}Answer:"


def _token(tokenizer: Any, letter: str) -> int:
    """The token of a letter after a space, or without it where those are several."""
    ids = tokenizer.encode(f" {letter}", add_special_tokens=False)
    return int(ids[0] if len(ids) == 1 else tokenizer.encode(letter, add_special_tokens=False)[0])
