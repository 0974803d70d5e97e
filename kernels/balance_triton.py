"""Triton twins of `balance.py`: one launch reads the fields and writes the law's terms and their weighted sums of squares, a
second one reads the terms around each point and writes the gradient.

A derivative at point j reads the points j + o; its transpose collects, at point i, the outputs at i + o. Both walk the same
offsets with the same weights, so one function gives them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .balance import TINY, Law

POINTS = 256
LAWS = {"wave": 0, "continuity": 1, "transport": 2}


@triton.jit
def _first(j, o: tl.constexpr, n) -> tl.tensor:
    """Weight of point j + o in the first derivative at point j of n."""
    if o == 0:
        weight = tl.where(j == 0, -1.5, tl.where(j == n - 1, 1.5, 0.0))
    elif o == 1:
        weight = tl.where(j == 0, 2.0, tl.where(j == n - 1, 0.0, 0.5))
    elif o == -1:
        weight = tl.where(j == n - 1, -2.0, tl.where(j == 0, 0.0, -0.5))
    elif o == 2:
        weight = tl.where(j == 0, -0.5, 0.0)
    elif o == -2:
        weight = tl.where(j == n - 1, 0.5, 0.0)
    else:
        weight = j * 0.0
    return weight


@triton.jit
def _second(j, o: tl.constexpr, n) -> tl.tensor:
    """Weight of point j + o in the second derivative at point j of n."""
    edge = (j == 0) | (j == n - 1)
    if o == 0:
        weight = tl.where(edge, 2.0, -2.0)
    elif o == 1:
        weight = tl.where(j == 0, -5.0, tl.where(j == n - 1, 0.0, 1.0))
    elif o == -1:
        weight = tl.where(j == n - 1, -5.0, tl.where(j == 0, 0.0, 1.0))
    elif o == 2:
        weight = tl.where(j == 0, 4.0, 0.0)
    elif o == -2:
        weight = tl.where(j == n - 1, 4.0, 0.0)
    elif o == 3:
        weight = tl.where(j == 0, -1.0, 0.0)
    else:
        weight = tl.where(j == n - 1, -1.0, 0.0)
    return weight


@triton.jit
def _square(values) -> tl.tensor:
    return values * values


@triton.jit
def _terms_kernel(
    field, velocity, weight, constant, terms, sums, volume, channels, shared,
    T, H, W, LAW: tl.constexpr, POINTS: tl.constexpr,
) -> None:  # fmt: skip
    """Terms of some points of one channel of one sample, and their share of the four sums."""
    plane = tl.program_id(1).to(tl.int64)
    sample = plane // channels
    p = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    inside = p < volume
    t, y, x = p // (H * W), (p // W) % H, p % W
    f = field + plane * volume
    u = velocity + sample * 2 * volume
    v = u + volume
    c = tl.load(constant + sample)
    first = tl.zeros((POINTS,), dtype=tl.float32)
    second, third, curvature = first, first, first
    for o in tl.static_range(-3, 4):
        if LAW == 0:
            a = _second(t, o, T)
        else:
            a = _first(t, o, T)
        first += a * tl.load(f + p + o * H * W, mask=inside & (a != 0), other=0.0)
        if LAW != 0:
            a = _first(x, o, W)
            use = inside & (a != 0)
            second += a * tl.load(f + p + o, mask=use, other=0.0) * tl.load(u + p + o, mask=use, other=0.0)
            a = _first(y, o, H)
            use = inside & (a != 0)
            third += a * tl.load(f + p + o * W, mask=use, other=0.0) * tl.load(v + p + o * W, mask=use, other=0.0)
        if LAW != 1:
            a = _second(x, o, W)
            curvature += a * tl.load(f + p + o, mask=inside & (a != 0), other=0.0)
            a = _second(y, o, H)
            curvature += a * tl.load(f + p + o * W, mask=inside & (a != 0), other=0.0)
    if LAW == 0:
        second = -c * curvature
    if LAW == 2:
        second, third = second + third, -c * curvature
    each = tl.num_programs(1).to(tl.int64) * volume
    tl.store(terms + plane * volume + p, first, mask=inside)
    tl.store(terms + each + plane * volume + p, second, mask=inside)
    tl.store(terms + 2 * each + plane * volume + p, third, mask=inside)
    w = tl.load(weight + sample * (1 - shared) * volume + p, mask=inside, other=0.0)
    at = sums + (plane * tl.num_programs(0) + tl.program_id(0)) * 4
    tl.store(at, tl.sum(w * _square(first + second + third), axis=0))
    tl.store(at + 1, tl.sum(w * _square(first), axis=0))
    tl.store(at + 2, tl.sum(w * _square(second), axis=0))
    tl.store(at + 3, tl.sum(w * _square(third), axis=0))


@triton.jit
def _cotangent(terms, w, each, which: tl.constexpr, along, against, use) -> tl.tensor:
    """Derivative of the balance by one term at some points: weight * (along * sum of terms - against * term)."""
    first = tl.load(terms, mask=use, other=0.0)
    second = tl.load(terms + each, mask=use, other=0.0)
    third = tl.load(terms + 2 * each, mask=use, other=0.0)
    whole = first + second + third
    if which == 0:
        own = first
    elif which == 1:
        own = second
    else:
        own = third
    return tl.load(w, mask=use, other=0.0) * (along * whole - against * own)


@triton.jit
def _gradient_kernel(
    field, velocity, weight, constant, terms, along, against, by_field, by_velocity, volume, channels, shared,
    T, H, W, LAW: tl.constexpr, POINTS: tl.constexpr,
) -> None:  # fmt: skip
    """The transposed stencils of the terms' cotangents."""
    plane = tl.program_id(1).to(tl.int64)
    sample = plane // channels
    p = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    inside = p < volume
    t, y, x = p // (H * W), (p // W) % H, p % W
    each = tl.num_programs(1).to(tl.int64) * volume
    q = terms + plane * volume + p
    w = weight + sample * (1 - shared) * volume + p
    up, down, c = tl.load(along + sample), tl.load(against + sample), tl.load(constant + sample)
    total = tl.zeros((POINTS,), dtype=tl.float32)
    to_x, to_y = total, total
    for o in tl.static_range(-3, 4):
        # The output at i + o read this point at offset -o.
        a = tl.where((t + o >= 0) & (t + o < T), _second(t + o, -o, T) if LAW == 0 else _first(t + o, -o, T), 0.0)
        total += a * _cotangent(q + o * H * W, w + o * H * W, each, 0, up, down, inside & (a != 0))
        if LAW != 0:
            a = tl.where((x + o >= 0) & (x + o < W), _first(x + o, -o, W), 0.0)
            to_x += a * _cotangent(q + o, w + o, each, 1, up, down, inside & (a != 0))
            a = tl.where((y + o >= 0) & (y + o < H), _first(y + o, -o, H), 0.0)
            to_y += a * _cotangent(q + o * W, w + o * W, each, 2 if LAW == 1 else 1, up, down, inside & (a != 0))
        if LAW != 1:
            a = tl.where((x + o >= 0) & (x + o < W), _second(x + o, -o, W), 0.0)
            total -= c * a * _cotangent(q + o, w + o, each, 1 if LAW == 0 else 2, up, down, inside & (a != 0))
            a = tl.where((y + o >= 0) & (y + o < H), _second(y + o, -o, H), 0.0)
            total -= c * a * _cotangent(q + o * W, w + o * W, each, 1 if LAW == 0 else 2, up, down, inside & (a != 0))
    if LAW != 0:
        f = tl.load(field + plane * volume + p, mask=inside, other=0.0)
        u = velocity + sample * 2 * volume + p
        total += to_x * tl.load(u, mask=inside, other=0.0) + to_y * tl.load(u + volume, mask=inside, other=0.0)
        tl.store(by_velocity + sample * 2 * volume + p, f * to_x, mask=inside)
        tl.store(by_velocity + sample * 2 * volume + volume + p, f * to_y, mask=inside)
    tl.store(by_field + plane * volume + p, total, mask=inside)


def balance(
    field: Tensor, velocity: Tensor | None, weight: Tensor, floor: Tensor, constant: Tensor, law: Law, want_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Twin of `balance.tiled_balance`; float32 throughout."""
    batch, channels, *size = field.shape
    wide = field.contiguous()
    flow = wide if velocity is None else velocity.contiguous()
    weight = weight.contiguous()
    volume = wide[0, 0].numel()
    grid = (triton.cdiv(volume, POINTS), batch * channels)
    where = (volume, channels, int(weight.shape[0] == 1), *size)
    terms = torch.empty((3, *wide.shape), dtype=torch.float32, device=field.device)
    sums = torch.empty((batch, channels * grid[0], 4), dtype=torch.float32, device=field.device)
    _terms_kernel[grid](wide, flow, weight, constant, terms, sums, *where, LAW=LAWS[law], POINTS=POINTS)
    points = weight.sum(dim=(1, 2, 3, 4)).clamp(min=TINY)
    top, *parts = (sums.sum(dim=1) / points[:, None]).unbind(dim=1)
    bottom = sum(parts) + floor + TINY
    value = top / bottom
    if not want_gradient:
        return value, None, None
    along, against = 2 / (bottom * points), 2 * value / (bottom * points)
    by_field = torch.empty_like(wide)
    by_velocity = by_field if velocity is None else torch.empty_like(flow)
    _gradient_kernel[grid](
        wide, flow, weight, constant, terms, along, against, by_field, by_velocity, *where, LAW=LAWS[law], POINTS=POINTS
    )
    return value, by_field, None if velocity is None else by_velocity
