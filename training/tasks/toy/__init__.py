"""The toy world's own models as tasks of the loop."""
