"""How tensors lie in memory: pairs of real numbers, conjugates, and what heads or sets of weights share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .checks import REAL


def plain(t: Tensor) -> Tensor:
    """The tensor as a kernel reads memory: contiguous, and no conjugation pending.

    What goes to a native op only has to be contiguous: torch resolves pending conjugations on the way there.
    """
    return t if t.is_contiguous() and not t.is_conj() else t.resolve_conj().contiguous()


def as_complex(pairs: Tensor) -> Tensor:
    """Real ``(..., 2)`` as complex ``(...)``, wherever its memory lies: a view if that can be one, else a copy.

    Half precision, which has no complex numbers, is widened to float32.
    """
    if pairs.dtype not in REAL:
        pairs = pairs.float()
    if not torch.compiler.is_compiling():  # a graph serves tensors that are somewhere else later
        try:
            return torch.view_as_complex(pairs)
        except RuntimeError:  # pairs that begin at an odd place, or are not next to each other
            pass
    return torch.complex(*pairs.unbind(-1))


def interleaved(z: Tensor) -> Tensor:
    """Complex ``(..., N)`` as real ``(..., 2 N)``: re, im, re, im, ..."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def paired(x: Tensor) -> Tensor:
    """The inverse of ``interleaved``, a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def conjugated(t: Tensor) -> Tensor:
    """The conjugate, and no view. ``torch.vmap`` has rules for conj and resolve_conj, and none for conj_physical."""
    return t.conj().resolve_conj()


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
    return tuple(plain(tensor) for tensor in (weights, *shared))
