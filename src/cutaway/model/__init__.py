"""The network; it knows nothing of loading, caches or analyses."""
