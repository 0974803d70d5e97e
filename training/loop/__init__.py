"""The one training loop, its checkpoint, log, optimiser and processes. Knows no task."""
