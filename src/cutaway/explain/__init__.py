"""Explain: a trained model goes in, a program comes out that runs instead of it, with the tests that it stood.

from cutaway.explain import explain, save

explanation = explain(model, Prompts.read("train.jsonl"), Prompts.read("test.jsonl"))
print(explanation.verdict.verdict, explanation.program)
"""

from __future__ import annotations

from cutaway.errors import suggest_names
from cutaway.explain.explaining import Explanation, explain
from cutaway.explain.pages import FILES, html, numbers, save, summary
from cutaway.explain.verdict import Verdict

__all__ = ["FILES", "Explanation", "Verdict", "explain", "html", "numbers", "save", "summary"]

suggest_names(__name__)
