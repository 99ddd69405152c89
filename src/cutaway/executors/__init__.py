"""Executors: where the chunks of a plan are computed. In this process, in several, on a Ray cluster, or by torchrun's ranks.

None of them decides what is computed or how: chunks are settled before, and results depend on the chunk alone.
"""

from cutaway.errors import suggest_names
from cutaway.executors.choosing import executor_of, names
from cutaway.executors.driving import Executor, Job, SetAside
from cutaway.executors.local import Local
from cutaway.executors.processes import Processes
from cutaway.executors.ranks import Ranks
from cutaway.executors.ray_cluster import Ray

__all__ = ["Executor", "Job", "Local", "Processes", "Ranks", "Ray", "SetAside", "executor_of", "names"]

suggest_names(__name__)
