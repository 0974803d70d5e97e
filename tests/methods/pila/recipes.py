"""Which channels of the bank an expert may update, from its recipe."""

from __future__ import annotations

import torch
from latent_physics.methods.pila.bank import BANK_CHANNELS, OFFSETS, WIDTHS
from latent_physics.methods.pila.experts import RECIPES
from torch import Tensor


def recipe_mask(category: str) -> Tensor:
    """m_k as a bool vector over the bank's 32 channels."""
    mask = torch.zeros(BANK_CHANNELS, dtype=torch.bool)
    for name in RECIPES[category]:
        mask[OFFSETS[name] : OFFSETS[name] + WIDTHS[name]] = True
    return mask
