"""S4's generating function and its adjoint by the C++ kernels (csrc/dplr_generating)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from .reference import stacked

#: float32 squares the squares of poles and nodes: larger poles are served in float64, larger nodes as their inverses.
_LARGEST = 2.0**28


def _largest(w: Tensor) -> float:
    return float(torch.view_as_real(w.resolve_conj()).abs().max()) if w.numel() > 0 else 0.0


def _widened(tensors: tuple[Tensor, ...], w: Tensor) -> tuple[Tensor, ...]:
    """In double precision if a pole is too large for less."""
    if w.dtype == torch.complex128 or _largest(w) <= _LARGEST:
        return tensors
    return tuple(x.to(torch.complex128 if x.is_complex() else torch.float64) for x in tensors)


def _arguments(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """As the kernels take them: left, right, poles, and y and x of the nodes i x / y."""
    far = t.abs() > _LARGEST
    nodes = torch.stack((torch.where(far, 1 / t, 1), torch.where(far, 1, t)))
    return stacked(c, q), stacked(b.unsqueeze(0), p), w.contiguous(), nodes


@implement("dplr_generating", "cpu")
def dplr_generating(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> Tensor:
    arguments = _arguments(*_widened((c, p, q, b, w, t), w))
    return torch.ops.sequence_kernels_native.dplr_generating(*arguments).to(c.dtype)


@implement("dplr_generating_backward", "cpu")
def dplr_generating_backward(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    g_wide, *rest = _widened((g, c, p, q, b, w, t), w)
    out = torch.ops.sequence_kernels_native.dplr_generating_backward(g_wide.contiguous(), *_arguments(*rest))
    channels, rank = c.shape[0], p.shape[0]
    dc, dq, db, dp, dw = out.to(c.dtype).split((channels, rank, 1, rank, 1))
    return tuple(x.clone() for x in (dc, dp, dq, db[0], dw[0]))
