"""Vandermonde products in plain torch, by splitting the position in two levels.

With l = i T + j, e^{x l} = e^{x i T} e^{x j}: the product is a matrix product of the (L / T, N) factors of the rows
with the (N, T) factors of the columns, so only N (L / T + T) exponentials are evaluated and nothing of size N L is
held. The exponentials are evaluated in float64: in float32 the phase l Im(x) loses its digits as l grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


def _levels(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The factors e^{x i T} (..., N, rows) and e^{x j} (..., N, T) in the dtype of x, with rows * T >= length."""
    columns = 1 << ((max(length, 1) - 1).bit_length() + 1) // 2
    rows = -(-length // columns)
    exact = x.to(torch.promote_types(x.dtype, torch.float64)).unsqueeze(-1)
    row = torch.arange(rows, device=x.device, dtype=torch.float64) * columns
    column = torch.arange(columns, device=x.device, dtype=torch.float64)
    return torch.exp(exact * row).to(x.dtype), torch.exp(exact * column).to(x.dtype)


def _positions_to(power: int, length: int, like: Tensor) -> Tensor:
    real = like.real.dtype if like.is_complex() else like.dtype
    return torch.arange(length, device=like.device, dtype=torch.float64).pow(power).to(real)


@implement("vandermonde", "torch")
def vandermonde(v: Tensor, x: Tensor, length: int, conjugate: bool, power: int) -> Tensor:
    rows, columns = _levels(x, length)
    left = (v.unsqueeze(-1) * rows).mT
    if conjugate and v.is_complex():
        product = 2 * (left.real @ columns.real - left.imag @ columns.imag)
    else:
        product = (left @ columns) * (2 if conjugate else 1)
    out = product.flatten(-2)[..., :length]
    return out * _positions_to(power, length, out) if power else out.contiguous()


@implement("vandermonde_transpose", "torch")
def vandermonde_transpose(g: Tensor, x: Tensor, power: int) -> Tensor:
    length = g.shape[-1]
    rows, columns = _levels(x, length)
    if power:
        g = g * _positions_to(power, length, g)
    tiles = torch.nn.functional.pad(g, (0, rows.shape[-1] * columns.shape[-1] - length))
    tiles = tiles.unflatten(-1, (rows.shape[-1], columns.shape[-1]))
    if g.is_complex() or not x.is_complex():
        partial = tiles @ columns.mT.to(torch.promote_types(g.dtype, x.dtype))
    else:
        partial = torch.complex(tiles @ columns.real.mT, tiles @ columns.imag.mT)
    return (partial * rows.mT).sum(-2)
