"""Collect: the activations of a corpus as a data set on disk, and the reader of such data sets.

corpus → chunks of documents → rows of tokens → activations → shards, index, texts → card → reader.
"""

from cutaway.collect.collecting import Collected, collect
from cutaway.collect.collection import Collection, RowBatch
from cutaway.collect.corpus import Corpus
from cutaway.collect.planning import CollectPlan, plan
from cutaway.collect.shuffling import Permutation
from cutaway.collect.statistics import Statistics
from cutaway.errors import suggest_names

__all__ = ["CollectPlan", "Collected", "Collection", "Corpus", "Permutation", "RowBatch", "Statistics", "collect", "plan"]

suggest_names(__name__)
