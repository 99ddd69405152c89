"""Exercises: write a function about a model's inside, and have it checked against an independent one.

from cutaway import exercises
exercises.start("previous-token-heads")     # writes previous-token-heads.py: a task, a function to write, a hint
print(exercises.check("previous-token-heads").message)
"""

from __future__ import annotations

from cutaway.exercises.checking import CheckResult, check
from cutaway.exercises.exercise import Exercise, find, names
from cutaway.exercises.progress import Progress, start

__all__ = ["CheckResult", "Exercise", "Progress", "check", "find", "names", "start"]
