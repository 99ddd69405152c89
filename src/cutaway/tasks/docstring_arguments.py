"""Docstring arguments: a Python function whose docstring describes its arguments in order; the next argument's name comes next.

After the circuit of this name (Heimersheim and Janiak, 2023). The counterpart has another name in the signature there.
"""

from __future__ import annotations

from typing import Any

import torch

from cutaway.tasks.language import FilledTemplate, Language, pick, single

ARGUMENTS = tuple(f" {word}" for word in (
    "load", "size", "files", "last", "name", "path", "value", "index", "count", "image", "state", "color", "width", "order",
    "model", "event", "user", "text",
))  # fmt: skip
WORDS = tuple(f" {word}" for word in (
    "oil", "column", "crime", "population", "unit", "dark", "fire", "garden", "image", "season", "page", "water", "plan",
    "story",
))  # fmt: skip
TEMPLATE = (
    "def {function}(self,{A_def},{B_def},{C_def},{d}):\n"
    '    """{p}{q}{r}\n\n'
    "    :param{A_doc}:{s}{t}\n    :param{B_doc}:{u}{v}\n    :param"
)


class DocstringArguments(Language):
    """Which argument a docstring describes next."""

    name = "docstring-arguments"
    summary = "which argument of a function its docstring describes next"

    def one(self, tokenizer: Any, generator: torch.Generator) -> FilledTemplate:
        a, b, c, d, other = pick(single(tokenizer, ARGUMENTS, 6, "argument names"), generator, 5)
        fillers = dict(zip("pqrstuv", pick(WORDS, generator, 7), strict=True))
        function = pick(("port", "make", "read", "show", "find"), generator)[0]
        words = {"function": function, "A_def": a, "B_def": b, "C_def": c, "d": d, "A_doc": a, "B_doc": b, **fillers}
        return FilledTemplate(TEMPLATE, words, {**words, "C_def": other}, (c,), (other,))
