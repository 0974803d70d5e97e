"""Relational losses in O(N C) memory: TSA's tempered KL, and token relation distillation (VideoREPA,
MoAlign).
"""

from .losses import relation_l1, tempered_kl

__all__ = ["relation_l1", "tempered_kl"]
