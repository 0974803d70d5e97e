"""Where a point of a video is in every frame, as features see it: TSA's correspondence P[i, f], for looking at."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int, int]


def correspondence(features: Tensor, grid: Grid, query: Grid, temperature: float = 0.1) -> Tensor:
    """P[i, f] of one token i: `F H W` float32, the places of every frame f sum to 1.

    features: `N C`, N = F * H * W tokens in frame-major order, any scale; grid: (F, H, W); query: the token's (frame, row,
    column). P[i, f] is the softmax over a frame's places of the cosine similarity over the temperature. Source: TSA eqs 6-8.
    Raises ValueError where the tokens do not fill the grid, the query lies outside it, or the temperature is not above 0.
    """
    if features.shape[0] != math.prod(grid):
        raise ValueError(f"{features.shape[0]} tokens do not fill a grid of {'x'.join(map(str, grid))}.")
    if not all(0 <= place < size for place, size in zip(query, grid)):
        raise ValueError(f"the point {query} lies outside a grid of {'x'.join(map(str, grid))}.")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; it must be greater than 0.")
    unit = functional.normalize(features.float(), dim=-1)
    frame, row, column = query
    scores = unit @ unit[(frame * grid[1] + row) * grid[2] + column]
    return torch.softmax(scores.view(grid[0], -1) / temperature, dim=1).view(grid)
