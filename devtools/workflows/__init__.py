"""Writer of the pack's workflows: `python -m devtools.workflows` from the repository's root."""
