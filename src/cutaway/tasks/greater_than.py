"""Greater than: "from the year 1732 to the year 17", and a later year comes next (https://arxiv.org/abs/2305.00586).

Where a year's two last digits are one token, every larger number is right. Where each digit is a token, the tens digit is the
answer, and years end in 9: 1732 could go on to 1735, 1739 to no later year with a "3". The counterpart begins in 01 or 09.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from cutaway.tasks.language import FilledTemplate, Language, is_single, number, pick, single

NOUNS = (
    "war", "campaign", "voyage", "siege", "expedition", "conflict", "occupation", "dispute", "alliance", "reform", "treaty",
    "contract", "trial", "drought", "famine",
)  # fmt: skip
DIGITS, PAIRS = tuple("0123456789"), tuple(f"{year:02}" for year in range(100))
CENTURIES = tuple(map(str, range(11, 18)))


class GreaterThan(Language):
    """Which years may follow."""

    name = "greater-than"
    summary = "which years may end a span that begins in a given year"
    several = True

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        template = "The {noun} lasted from the year {century}{Year}{rest} to the year {century}"
        words = {"noun": pick(NOUNS, generator)[0], "rest": ""}
        years = years_in_two_tokens(tokenizer)
        if years:
            century = pick(sorted(years), generator)[0]
            begin = pick([year for year in years[century] if 20 <= int(year) < 80], generator)[0]
            later = [year for year in PAIRS if is_single(tokenizer, year)]
            right, wrong = (tuple(year for year in later if (year > begin) == larger) for larger in (True, False))
            words |= {"century": century, "Year": begin}
            return FilledTemplate(template, words, {**words, "Year": years[century][0]}, right, wrong)
        single(tokenizer, DIGITS, 10, "digits")
        tens = number(2, 8, generator)
        words |= {"century": str(pick(CENTURIES, generator)[0]), "Year": str(tens), "rest": DIGITS[-1]}
        return FilledTemplate(template, words, {**words, "Year": "0"}, DIGITS[tens + 1 :], DIGITS[: tens + 1])


@lru_cache(maxsize=4)
def years_in_two_tokens(tokenizer: Any) -> dict[str, list[str]]:
    """Century → the last two digits of its years that are one token; none of a century that lacks early or middle ones."""
    found = {}
    for century in CENTURIES:
        parts = {year: tokenizer.encode(f" {century}{year}", add_special_tokens=False) for year in PAIRS}
        there = [year for year, ids in parts.items() if [tokenizer.decode([id]) for id in ids] == [f" {century}", year]]
        if any(int(year) < 10 for year in there) and any(20 <= int(year) < 80 for year in there):
            found[century] = there
    return found
