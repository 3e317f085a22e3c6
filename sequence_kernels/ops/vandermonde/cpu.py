"""Vandermonde products by the C++ kernels (csrc/vandermonde)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import sets_and_channels


def _complex(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else torch.complex(tensor, torch.zeros_like(tensor))


@implement("vandermonde", "cpu")
def vandermonde(v: Tensor, x: Tensor, L: int, conjugate: bool, power: int) -> Tensor:
    pairs = conjugate or not v.is_complex()  # a real product is half that of pairs with imaginary parts of 0
    weights, exponents = sets_and_channels(_complex(v), _complex(x))
    out = torch.ops.sequence_kernels_native.vandermonde(weights, exponents, L, pairs, power)
    batch = torch.broadcast_shapes(v.shape[:-1], x.shape[:-1])
    return (out if conjugate or not pairs else out / 2).reshape(*batch, L)


@implement("vandermonde_transpose", "cpu")
def vandermonde_transpose(g: Tensor, x: Tensor, power: int) -> Tensor:
    weights, exponents = sets_and_channels(g, _complex(x))
    out = torch.ops.sequence_kernels_native.vandermonde_transpose(weights, exponents, power)
    out = out.reshape(*torch.broadcast_shapes(g.shape[:-1], x.shape[:-1]), x.shape[-1])
    return out if g.is_complex() or x.is_complex() else out.real.contiguous()
