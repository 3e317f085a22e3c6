"""S4's generating function by the C++ kernel (csrc/dplr_generating)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ..dispatch import implement
from . import adjoint
from .reference import on_circle, stacked

#: float32 squares the squares of poles and nodes: larger poles are served in float64.
_LARGEST = 2.0**28


def _largest(w: Tensor) -> float:
    return float(torch.view_as_real(w.resolve_conj()).abs().max()) if w.numel() > 0 else 0.0


@implement("dplr_generating", "cpu", needs=native.needs("cpu"))
def dplr_generating(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> Tensor:
    if w.dtype == torch.complex64 and _largest(w) > _LARGEST:
        c_wide, p_wide, q_wide, b_wide, w_wide = (x.to(torch.complex128) for x in (c, p, q, b, w))
        return dplr_generating(c_wide, p_wide, q_wide, b_wide, w_wide, t.double()).to(c.dtype)
    node = torch.complex(*on_circle(t.double())).to(c.dtype)
    left, right = stacked(c, q), stacked(b.unsqueeze(0), p)
    return torch.ops.sequence_kernels_native.dplr_generating(left, right, w.resolve_conj().contiguous(), node)


@implement("dplr_generating_backward", "cpu", needs=native.needs("cpu"))
def dplr_generating_backward(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in adjoint.gradients(g, c, p, q, b, w, t, "cpu"))
