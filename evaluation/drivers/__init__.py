"""Programs that run in a scorer's own environment, by path: they import the scorer and nothing of this pack."""
