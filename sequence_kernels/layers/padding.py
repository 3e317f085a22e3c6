"""Sequences of different lengths in one batch: what lies past the end of each is padding, and is never read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops import checks


def sequence_lengths(lengths: Tensor | int | Sequence[int], u: Tensor) -> Tensor:
    """How many elements of each sequence of u ``(B, channels, L)`` are real, as int64 ``(B,)`` on its device.

    Raises TypeError for other than integers and ValueError for a shape other than ``()``, ``(1,)`` or ``(B,)`` and,
    on the CPU, for values outside 0 .. L.
    """
    lengths = torch.as_tensor(lengths, device=u.device)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() > 1 or (lengths.dim() == 1 and lengths.shape[0] not in (1, u.shape[0])):
        raise ValueError(f"lengths must have shape () or (batch={u.shape[0]},), got {tuple(lengths.shape)}")
    lengths = lengths.to(torch.int64).expand(u.shape[0])
    checks.lengths("lengths", lengths, u.shape[-1])
    return lengths


def without_padding(u: Tensor, lengths: Tensor) -> Tensor:
    """u ``(B, channels, L)`` with zeros from each sequence's length on, whatever was there."""
    return torch.where(torch.arange(u.shape[-1], device=u.device) < lengths.view(-1, 1, 1), u, 0)
