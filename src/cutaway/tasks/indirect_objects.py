"""Indirect objects: two names, one of them again; the other comes next (https://arxiv.org/abs/2211.00593).

The counterpart says the other name again, so that the answers change places. Half of the texts name the answer first
(ABBA), half second (BABA).
"""

from __future__ import annotations

from typing import Any

import torch

from cutaway.prompts import Prompts
from cutaway.tasks.behaviour import Where
from cutaway.tasks.language import FilledTemplate, Language, number, pick, single

NAMES = tuple(f" {word}" for word in (
    "Mary", "John", "Tom", "James", "Dan", "Martin", "Amy", "Anna", "Kate", "Laura", "Alice", "Paul", "Peter", "Mark",
    "Robert", "David", "Sarah", "Emma", "Jack", "Henry", "Lisa", "Susan", "Michael", "Daniel", "George", "Jane", "Ruth",
    "Adam", "Simon", "Luke", "Eric", "Frank", "Rachel", "Helen", "Maria", "Julia", "Steve", "Kevin", "Brian", "Jason",
))  # fmt: skip
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "letter")
TEMPLATES = (
    "When{%s} and{%s} went to the {place},{S2} gave a {thing} to",
    "Then,{%s} and{%s} had a long argument at the {place}. Afterwards{S2} said a few words and handed a {thing} to",
    "After{%s} and{%s} had met at the {place},{S2} decided to offer a {thing} to",
    "While{%s} and{%s} were working at the {place},{S2} passed a {thing} to",
    "The {place} was nearly empty when{%s} and{%s} arrived there, and{S2} brought a {thing} for",
)


class IndirectObjects(Language):
    """Which of two names is the indirect object."""

    name = "indirect-objects"
    summary = "which of two names a sentence goes on with, where the other was just repeated"

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        io, subject = pick(single(tokenizer, NAMES, 4, "names"), generator, 2)
        order = ("IO", "S1") if number(0, 2, generator) else ("S1", "IO")
        template = pick(TEMPLATES, generator)[0] % order
        words = {
            "IO": io,
            "S1": subject,
            "S2": subject,
            "place": pick(PLACES, generator)[0],
            "thing": pick(OBJECTS, generator)[0],
        }
        return FilledTemplate(template, words, {**words, "S2": io}, (io,), (subject,))

    def classes(self, prompts: Prompts) -> dict[str, Where]:
        first = (prompts.place("IO") < prompts.place("S1"))[:, None]
        return {"answer named first (ABBA)": prompts.answered & first, "answer named second (BABA)": prompts.answered & ~first}
