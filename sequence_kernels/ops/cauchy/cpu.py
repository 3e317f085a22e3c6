"""Cauchy products by the C++ kernels (csrc/cauchy)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import plain, sets_and_channels


def _arguments(weights: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """As the kernels take them: complex weights (sets, channels, K), w (channels, N), z (channels or 1, L)."""
    weights, z, w = (t if t.is_complex() else torch.complex(t, torch.zeros_like(t)) for t in (weights, z, w))
    if math.prod(z.shape[:-1]) == 1:  # one row of nodes serves every channel
        z = plain(z.reshape(1, z.shape[-1]))
        return (*sets_and_channels(weights, w), z)
    return sets_and_channels(weights, w, z)


def _result(out: Tensor, *arguments: Tensor) -> Tensor:
    """With the leading dimensions of the arguments, and real if they are."""
    out = out.reshape(*torch.broadcast_shapes(*(t.shape[:-1] for t in arguments)), out.shape[-1])
    return out if arguments[0].is_complex() else out.real.contiguous()


@implement("cauchy", "cpu")
def cauchy(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    weights, poles, nodes = _arguments(v, z, w)
    out = torch.ops.sequence_kernels_native.cauchy(weights, nodes, poles, conjugate, order)
    return _result(out, v, z, w)


@implement("cauchy_transpose", "cpu")
def cauchy_transpose(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    weights, poles, nodes = _arguments(g, z, w)
    kernels = torch.ops.sequence_kernels_native
    transpose = kernels.cauchy_transpose_of_pairs if conjugate else kernels.cauchy_transpose
    return _result(transpose(weights, nodes, poles, order), g, z, w)
