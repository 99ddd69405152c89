"""Sweeps in folders: one that resumes a sweep, one of results by what they are, and workers that fill the latter."""

import cutaway.runs.sweep as _sweep  # noqa: F401 (its public call opens these folders: whoever comes here first needs it whole)
