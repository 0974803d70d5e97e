"""The one error of an evaluation."""

from __future__ import annotations


class EvaluationError(ValueError):
    """An evaluation cannot continue. The message is one sentence for the user."""
