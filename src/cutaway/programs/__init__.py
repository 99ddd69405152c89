"""Programs: what transformers compute, as a small language that runs alone, prints as Python and compiles to weights.

from cutaway import programs

program = programs.find("induction")
programs.predict(program, [0, 1, 2, 0])      # {0: …, 3: 1}
print(program)                               # a Python file that runs alone
"""

from __future__ import annotations

from cutaway.errors import suggest_names
from cutaway.programs.drawing import draw
from cutaway.programs.interpreter import Evaluation, predict, run
from cutaway.programs.language import Attend, Bucket, Kind, Map, Multiply, Program, ReadOut, Selector, Term, Weigh
from cutaway.programs.printing import as_python, line_as_python
from cutaway.programs.shipped import find, names
from cutaway.programs.storing import from_dict, from_json, read, to_dict, to_json

__all__ = [
    "Attend",
    "Bucket",
    "Evaluation",
    "Kind",
    "Map",
    "Multiply",
    "Program",
    "ReadOut",
    "Selector",
    "Term",
    "Weigh",
    "as_python",
    "draw",
    "find",
    "from_dict",
    "from_json",
    "line_as_python",
    "names",
    "predict",
    "read",
    "run",
    "to_dict",
    "to_json",
]  # fmt: skip

suggest_names(__name__)
