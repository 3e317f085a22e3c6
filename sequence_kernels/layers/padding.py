"""Sequences of different lengths in one batch: what lies past the end of each is padding, and is never read.

Whoever takes ``lengths`` first puts zeros there, by a selection: a product with zero would keep NaN and inf, forward in
the outputs and backward in the gradients of all that the padding was multiplied with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.padding import inside

#: What a caller may say of the lengths of a batch.
Lengths = Tensor | int | Sequence[int]


def sequence_lengths(lengths: Lengths, x: Tensor, transposed: bool) -> Tensor:
    """How many elements of each sequence of x are real, as int64 ``(B,)`` on its device.

    x is ``(..., length, channels)``, or ``(..., channels, length)`` if ``transposed``, with B sequences in all. Raises
    TypeError for other than integers and ValueError for a shape other than ``()``, ``(1,)`` or ``(B,)`` and, on the
    CPU, for values outside 0 .. length.
    """
    batch = math.prod(x.shape[:-2])
    lengths = torch.as_tensor(lengths, device=x.device)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() > 1 or (lengths.dim() == 1 and lengths.shape[0] not in (1, batch)):
        raise ValueError(f"lengths must have shape () or (batch={batch},), got {tuple(lengths.shape)}")
    lengths = lengths.to(torch.int64).expand(batch)
    checks.lengths("lengths", lengths, x.shape[-1 if transposed else -2])
    return lengths


def real_elements(x: Tensor, lengths: Tensor, transposed: bool) -> Tensor:
    """Which elements of x are real: booleans that broadcast to x. ``lengths``: as ``sequence_lengths`` gives them."""
    real = inside(lengths.reshape(x.shape[:-2]), x.shape[-1 if transposed else -2])
    return real.unsqueeze(-2 if transposed else -1)


def without_padding(x: Tensor, lengths: Lengths, transposed: bool) -> tuple[Tensor, Tensor]:
    """x with zeros from each sequence's length on, whatever was there, and the lengths: see ``sequence_lengths``."""
    lengths = sequence_lengths(lengths, x, transposed)
    return torch.where(real_elements(x, lengths, transposed), x, 0), lengths


class Moments(NamedTuple):
    """Of the real elements, with the dimensions that they were taken over kept."""

    mean: Tensor
    variance: Tensor  # the mean of the squares, not the unbiased estimate
    elements: Tensor


def moments(x: Tensor, real: Tensor, dims: tuple[int, ...]) -> Moments:
    """Mean and variance of x over the dimensions, counted from the last, of what is real; where there is nothing, 0.

    ``real``: booleans that broadcast to x, with as many dimensions.
    """
    together = [(x if i in dims else real).shape[i] for i in range(-x.dim(), 0)]
    count = real.expand(together).sum(dims, keepdim=True)
    some = count.clamp(min=1)
    mean = torch.where(real, x, 0).sum(dims, keepdim=True) / some
    variance = torch.where(real, x - mean, 0).square().sum(dims, keepdim=True) / some
    return Moments(mean, variance, count)
