"""The discretisation in plain torch, and its adjoint. The README has the formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dispatch import implement
from ..dplr_discretize.reference import of_copies
from ..layouts import by_head

#: 1 / (n + 1)!, complex, because torch converts a real number for each product with a complex tensor.
_SERIES = tuple(complex(1 / math.factorial(n + 1)) for n in range(7))


def expm1_over(x: Tensor) -> Tensor:
    """``(e^x - 1) / x`` for complex x, continuous at 0, where the quotient loses its digits: its series there."""
    small = x.abs() < 1e-2
    away = x.masked_fill(small, 1)
    square = x * x  # few operations: the arrays are so small that what counts is how many there are
    third = (x * _SERIES[3] + _SERIES[2]).addcmul(square, x * _SERIES[5] + _SERIES[4])
    series = (x * _SERIES[1] + _SERIES[0]).addcmul(square, third)
    return torch.where(small, series, torch.expm1(away) / away)


def _slope(x: Tensor, phi: Tensor) -> Tensor:
    """The derivative of ``expm1_over``, whose value is phi: ``(e^x - phi) / x``, and its series near 0."""
    small = x.abs() < 1e-2
    away = x.masked_fill(small, 1)
    series = torch.zeros_like(x)
    for n in range(6, 0, -1):
        series = series * x + n * _SERIES[n]
    return torch.where(small, series, (1 + x * phi - phi) / away)


def _phi(x: Tensor, bilinear: bool) -> Tensor:
    return (1 - x / 2).reciprocal() if bilinear else expm1_over(x)


@implement("diagonal_discretize", "torch")
def diagonal_discretize(a: Tensor, b: Tensor, dt: Tensor, bilinear: bool, wide: bool) -> tuple[Tensor, ...]:
    a, b = (by_head(t.to(torch.complex128), len(dt)) for t in (a, b))
    step = dt.to(torch.complex128).unsqueeze(-1)  # once: a product with a real tensor would do it again
    x = a * step
    phi = _phi(x, bilinear)
    dtype = torch.complex128 if wide else torch.complex64
    return (x * phi).to(dtype), (b * step * phi).to(dtype)


@implement("diagonal_discretize_backward", "torch")
def diagonal_discretize_backward(
    g_a: Tensor, g_b: Tensor, a: Tensor, b: Tensor, dt: Tensor, bilinear: bool, wide: bool
) -> tuple[Tensor, ...]:
    heads_a, heads_b = (by_head(t.to(torch.complex128), len(dt)) for t in (a, b))
    g_a, g_b = g_a.to(torch.complex128), g_b.to(torch.complex128)
    step = dt.to(torch.complex128).unsqueeze(-1)
    x = heads_a * step
    phi = _phi(x, bilinear)
    slope = phi * phi / 2 if bilinear else _slope(x, phi)
    g_x = (phi + x * slope).conj() * g_a + (heads_b * step * slope).conj() * g_b
    g_drive = phi.conj() * g_b
    d_dt = (heads_a.conj() * g_x + heads_b.conj() * g_drive).real.sum(-1)
    d_a, d_b = (of_copies(t, len(a)).to(a.dtype) for t in (step * g_x, step * g_drive))
    return d_a, d_b, d_dt.to(dt.dtype)
