"""Folders of a sweep: one that resumes it, one of results by what they are, and workers that fill the latter."""
