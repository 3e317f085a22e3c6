"""Broadcasting as the kernels take it: sets of weights that share the same poles, computed once for all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def by_head(copies: Tensor, heads: int) -> Tensor:
    """``(..., S, N)`` to ``(..., H, N)``: head h takes copy h mod S."""
    if copies.shape[-2] == heads:
        return copies
    return copies.repeat(*(1,) * (copies.dim() - 2), heads // copies.shape[-2], 1)


def sets_and_channels(weights: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
    """View ``(..., K)`` weights as contiguous ``(sets, channels, K)``, the tensors they share as ``(channels, K')``.

    The leading dimensions of all broadcast together. The sets are the leading dimensions that only the weights have.
    """
    batch = torch.broadcast_shapes(weights.shape[:-1], *(tensor.shape[:-1] for tensor in shared))
    common = torch.broadcast_shapes(*(tensor.shape[:-1] for tensor in shared))
    while common and common[0] == 1:
        common = common[1:]
    sets, channels = batch[: len(batch) - len(common)], batch[len(batch) - len(common) :]
    count = math.prod(channels)
    shared = tuple(
        tensor.reshape(tensor.shape[-len(channels) - 1 :])
        .expand(*channels, tensor.shape[-1])
        .reshape(count, tensor.shape[-1])
        for tensor in shared
    )
    weights = weights.expand(*batch, weights.shape[-1]).reshape(math.prod(sets), count, weights.shape[-1])
    return tuple(tensor.resolve_conj().contiguous() for tensor in (weights, *shared))
