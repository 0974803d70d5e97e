"""Programs run by path in a scorer's own environment: they import the scorer and nothing of this pack."""
