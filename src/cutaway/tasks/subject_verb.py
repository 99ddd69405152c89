"""Subject and verb: "The keys near the cabinet", and the verb agrees with the subject, not with the nearer noun.

(https://arxiv.org/abs/1611.01368.) The counterpart has the subject in the other number.
"""

from __future__ import annotations

from typing import Any

import torch

from cutaway.errors import PromptError
from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import Where
from cutaway.tasks.language import FilledTemplate, Language, number, pick, single

NOUNS = (
    "key",
    "boy",
    "girl",
    "dog",
    "cat",
    "book",
    "car",
    "table",
    "student",
    "teacher",
    "door",
    "picture",
    "house",
    "friend",
    "player",
    "doctor",
    "river",
    "tree",
)
BETWEEN = ("near", "behind", "next to", "in front of", "beside")


class SubjectVerb(Language):
    """Whether a singular or a plural verb comes next."""

    name = "subject-verb"
    summary = "whether a singular or a plural verb follows a subject, with another noun in between"

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        known = set(single(tokenizer, tuple(f" {noun}{s}" for noun in NOUNS for s in ("", "s")), 8, "nouns"))
        both = [noun for noun in NOUNS if {f" {noun}", f" {noun}s"} <= known]
        if len(both) < 4:
            raise PromptError(f"the vocabulary has only {len(both)} nouns in both numbers as single tokens, and 4 are needed")
        subject, other = pick(both, generator, 2)
        plural, other_plural = number(0, 2, generator), number(0, 2, generator)
        forms = (f" {subject}", f" {subject}s")
        words = {"Subject": forms[plural], "between": pick(BETWEEN, generator)[0], "Attractor": f" {other}" + "s" * other_plural}
        verbs = (" is", " are")
        counterpart = {**words, "Subject": forms[1 - plural]}
        template = "The{Subject} {between} the{Attractor}"
        return FilledTemplate(template, words, counterpart, (verbs[plural],), (verbs[1 - plural],))

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        plural = torch.tensor([text.split()[1].endswith("s") for text in prompts.texts])
        attractor = torch.tensor([text.split()[-1].endswith("s") for text in prompts.texts])
        same = (plural == attractor)[:, None]
        return {"nouns of the same number": prompts.answered & same, "nouns of different numbers": prompts.answered & ~same}
