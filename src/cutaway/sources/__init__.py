"""Where a model comes from: a checkpoint, whatever the place."""
