"""Bound of a step of Motion Prior Guidance: the largest one that cannot overshoot."""

from __future__ import annotations

import math


def pair_count(frames: int, lag: int, order: int = 1) -> int:
    """Number of frame pairs that eq 8 sums over: i = order-1 .. frames-lag-1.

    Raises ValueError for a lag below 1 and for a clip too short to hold a pair (an image is a clip of one
    frame).
    """
    if lag < 1:
        raise ValueError(f"lag is {lag}; it must be at least 1.")
    pairs = frames - lag - (order - 1)
    if pairs < 1:
        kind = "an image" if frames == 1 else f"a clip of {frames} latent frames"
        raise ValueError(
            f"motion needs at least {lag + order} latent frames at lag {lag}, but the latent is {kind}: "
            "generate a longer video."
        )
    return pairs


def largest_eigenvalue(frames: int, lag: int, order: int = 1) -> float:
    """Largest eigenvalue of D^T D, D the change over `lag` latent frames, z[i+lag] - z[i] for i >= order-1.

    D compares frames whose numbers differ by `lag` alone, so the frames fall apart into `lag` chains of
    neighbours, and D^T D is on each of them the Laplacian of a path. A path of n frames has the eigenvalues 2
    - 2 cos(pi k / n), k = 0 .. n-1; the largest is 2 + 2 cos(pi / n), of the longest chain, ceil((frames -
    order + 1) / lag) frames. It rises to 4 with the clip's length. Raises ValueError for a clip without a
    pair.
    """
    pair_count(frames, lag, order)
    chain = math.ceil((frames - (order - 1)) / lag)
    return 2 + 2 * math.cos(math.pi / chain)


def stable_step(frames: int, lag: int, order: int = 1) -> float:
    """The step eta above which x0 - eta dL_guide/dx0 makes some motion larger than it was.

    With L_guide = 1/P |D x0 + ...|^2 (LaMo, eq 8, P pairs) one step multiplies the part of x0 along an
    eigenvector of D^T D with eigenvalue mu by 1 - 2 eta mu / P, as long as the predicted change is held
    fixed. Its size stays below 1 for every mu up to the largest, mu_max, while eta < P / mu_max, which is
    what this returns (P / 4 for long clips). A share c of it multiplies the fastest motion's error by 1 - 2c:
    0.5 takes exactly that error away, 1 mirrors it.
    """
    return pair_count(frames, lag, order) / largest_eigenvalue(frames, lag, order)
