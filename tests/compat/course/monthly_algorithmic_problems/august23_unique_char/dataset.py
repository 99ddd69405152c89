"""A stand-in for the course's data set: the same sequences, under the name that its notebooks import."""

from cutaway.tasks import FirstUniqueChar


class UniqueCharDataset(FirstUniqueChar):
    """What the published problem calls the data set."""
