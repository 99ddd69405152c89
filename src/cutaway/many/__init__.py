"""One question across many models, checkpoints and sets of prompts: computed anywhere, kept by what it is, never twice."""

from cutaway.many.across_models import Across, across, plan
from cutaway.many.planning import AcrossPlan

__all__ = ["Across", "AcrossPlan", "across", "plan"]
