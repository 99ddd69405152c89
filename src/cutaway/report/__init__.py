"""Reports: a model and a behaviour go in; how well the model does it and how comes out, as a page, as numbers and as a few lines.

`make` asks the questions of `questions/`; `first_report.make` does so of models of first unique characters.
"""

from cutaway.errors import suggest_names
from cutaway.report.reporting import Report, joined, make

__all__ = ["Report", "joined", "make"]

suggest_names(__name__)
