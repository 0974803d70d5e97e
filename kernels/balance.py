"""Residuals of conservation and wave laws as balances: <(sum of terms)^2> / (sum of <term^2> + floor), one number a sample.

0 where the terms of the law cancel, 1 where they are unrelated; <.> is a weighted mean over space and time, summed over
channels. Terms and gradient are formed together: the terms' buffers become their cotangents, and the transposed stencils add
those up into the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .backend import choose
from .precomputed import accumulate_dtype
from .stencil import TIME, X, Y, add_transposed, difference

TINY = 1e-8
"""Keeps 0/0 at 0."""
Law = Literal["wave", "continuity", "transport"]


def wave_balance(field: Tensor, weight: Tensor, floor: Tensor | float = 0.0, speed2: Tensor | float = 0.25) -> Tensor:
    """f_tt = speed2 * laplacian(f), `B`.

    field: `B C T H W` with at least 4 points along T, H and W. weight: `B 1 T H W` or `1 1 T H W`, where to look. floor: the
    activity below which nothing is charged, a number or `B`. speed2: a number or one per sample. All but the field are constants.
    Raises ValueError for other shapes.
    """
    _check(field, weight, 4)
    return _Balance.apply(field, None, weight.detach(), *_numbers(field, floor, speed2), "wave")


def transport_balance(
    field: Tensor, velocity: Tensor, weight: Tensor, floor: Tensor | float = 0.0, diffusivity: Tensor | float | None = None
) -> Tensor:
    """f_t + div(f u) = diffusivity * laplacian(f), `B`.

    field: `B 1 T H W`, velocity: `B 2 T H W` (x, y), both get gradients. With a diffusivity the terms are storage, the whole
    flux and diffusion (heat); without one they are storage and the two directions of the flux (continuity of mass).
    Other arguments and errors as in `wave_balance`.
    """
    _check(field, weight, 3 if diffusivity is None else 4)
    expected = (field.shape[0], 2, *field.shape[2:])
    if field.shape[1] != 1 or velocity.shape != expected:
        raise ValueError(f"field {tuple(field.shape)} and velocity {tuple(velocity.shape)} must be B 1 T H W and B 2 T H W.")
    law, constant = ("continuity", 0.0) if diffusivity is None else ("transport", diffusivity)
    return _Balance.apply(field, velocity, weight.detach(), *_numbers(field, floor, constant), law)


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, field: Tensor, velocity: Tensor | None, weight: Tensor, floor: Tensor, constant: Tensor, law: Law
    ) -> Tensor:
        if choose(field) == "triton":
            from .balance_triton import balance
        else:
            balance = tiled_balance
        want_gradient = any(ctx.needs_input_grad[:2])
        ctx.dtypes = (field.dtype, None if velocity is None else velocity.dtype)
        dtype = accumulate_dtype(field)
        field, velocity = field.to(dtype), None if velocity is None else velocity.to(dtype)
        value, *gradients = balance(field, velocity, weight.to(dtype), floor, constant, law, want_gradient)
        if want_gradient:
            ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream.view(-1, 1, 1, 1, 1)
        gradients = [(gradient * scale).to(dtype) for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        return gradients[0], gradients[1] if len(gradients) > 1 else None, None, None, None, None


def tiled_balance(
    field: Tensor, velocity: Tensor | None, weight: Tensor, floor: Tensor, constant: Tensor, law: Law, want_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value `B` and its gradients by field and velocity, in plain torch."""
    column = constant.view(-1, 1, 1, 1, 1)
    terms = _terms(field, velocity, column, law)
    value = _cotangents_(terms, weight, floor)
    if not want_gradient:
        return value, None, None
    if law == "wave":
        gradient = add_transposed(torch.zeros_like(terms[0]), terms[0], TIME, 2)
        return value, _add_laplacian(gradient, terms[1].mul_(-column)), None
    flux_x, flux_y = terms[1], terms[2] if law == "continuity" else terms[1]
    along_x = add_transposed(torch.zeros_like(flux_x), flux_x, X, 1)
    along_y = add_transposed(torch.zeros_like(flux_y), flux_y, Y, 1)
    by_velocity = torch.cat([along_x * field, along_y * field], dim=1)
    gradient = along_x.mul_(velocity[:, :1]).addcmul_(along_y, velocity[:, 1:])
    add_transposed(gradient, terms[0], TIME, 1)
    if law == "transport":
        _add_laplacian(gradient, terms[2].mul_(-column))
    return value, gradient, by_velocity


def _terms(field: Tensor, velocity: Tensor | None, constant: Tensor, law: Law) -> list[Tensor]:
    """The law's terms, each a buffer of its own."""
    if law == "wave":
        return [difference(field, TIME, 2), _laplacian(field).mul_(-constant)]
    flux_x = difference(field * velocity[:, :1], X, 1)
    flux_y = difference(field * velocity[:, 1:], Y, 1)
    if law == "continuity":
        return [difference(field, TIME, 1), flux_x, flux_y]
    return [difference(field, TIME, 1), flux_x.add_(flux_y), _laplacian(field).mul_(-constant)]


def _cotangents_(terms: list[Tensor], weight: Tensor, floor: Tensor) -> Tensor:
    """The balance, `B`; turns every term into the balance's derivative by it, in place."""
    share = weight / weight.sum(dim=(1, 2, 3, 4), keepdim=True).clamp(min=TINY)

    weighted = torch.empty_like(terms[0])

    def mean_square(term: Tensor) -> Tensor:
        return torch.linalg.vecdot(torch.mul(term, share, out=weighted).flatten(1), term.flatten(1))

    whole = terms[0] + terms[1]
    for term in terms[2:]:
        whole += term
    top = mean_square(whole)
    bottom = sum(mean_square(term) for term in terms) + floor + TINY
    value = top / bottom
    whole.mul_(share * (2 / bottom).view(-1, 1, 1, 1, 1))
    for term in terms:
        term.mul_(share * (-2 * value / bottom).view(-1, 1, 1, 1, 1)).add_(whole)
    return value


def _laplacian(field: Tensor) -> Tensor:
    return difference(field, X, 2).add_(difference(field, Y, 2))


def _add_laplacian(into: Tensor, gradient: Tensor) -> Tensor:
    return add_transposed(add_transposed(into, gradient, X, 2), gradient, Y, 2)


def _numbers(field: Tensor, *numbers: Tensor | float) -> list[Tensor]:
    """Each number as a constant `B` in the accumulating dtype. Raises ValueError where it is not one number or one a sample."""
    batch, dtype = field.shape[0], accumulate_dtype(field)
    found = []
    for number in numbers:
        tensor = number.detach() if isinstance(number, Tensor) else torch.full((1,), number, dtype=dtype, device=field.device)
        tensor = tensor.to(field.device, dtype)
        if tensor.numel() not in (1, batch):
            raise ValueError(f"a constant of shape {tuple(tensor.shape)} must hold one number or one a sample, {batch} of them.")
        found.append(tensor.reshape(-1).expand(batch).contiguous())
    return found


def _check(field: Tensor, weight: Tensor, points: int) -> None:
    if field.ndim != 5 or not field.is_floating_point():
        raise ValueError(f"the field is {field.dtype} of shape {tuple(field.shape)}; it must be floating-point B C T H W.")
    if min(field.shape[2:]) < points:
        raise ValueError(f"the field has {tuple(field.shape[2:])} frames, rows and columns; each must be at least {points}.")
    if weight.ndim != 5 or weight.shape[0] not in (1, field.shape[0]) or weight.shape[1:] != (1, *field.shape[2:]):
        raise ValueError(f"the weight has shape {tuple(weight.shape)}; it must be B or 1, then {(1, *field.shape[2:])}.")
