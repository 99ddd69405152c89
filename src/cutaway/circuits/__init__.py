"""Circuits: which edges between components carry a behaviour, how sure that is, and runs of these edges alone."""
