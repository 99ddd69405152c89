"""Questions asked of a model or a run."""
