"""The discretisation in plain torch: by Woodbury, with ``g = 1 / (1 - w dt/2)``. The README has the formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import by_head


@implement("dplr_discretize", "torch")
def dplr_discretize(w: Tensor, p: Tensor, b: Tensor, dt: Tensor, wide: bool) -> tuple[Tensor, ...]:
    w, p, b = (by_head(t.to(torch.complex128), len(dt)) for t in (w, p, b))
    half = dt.unsqueeze(-1) / 2
    g = 1 / (1 - half * w)
    gp, q = g * p, g * p.conj()
    identity = torch.eye(len(p), dtype=half.dtype, device=half.device)
    small = identity + half.unsqueeze(-1) * _paired_inner(p.conj(), gp)
    small = torch.linalg.inv(small) if len(p) > 1 else small.reciprocal()
    lift = -2 * half * torch.einsum("rhn,hrq->qhn", gp, small.to(gp.dtype))
    pull = torch.einsum("qhn,hq->hn", lift, _paired_inner(q, b.unsqueeze(0)).squeeze(-1).to(lift.dtype))
    results = (2 * half * w * g, lift, q, half * (2 * g * b + pull))
    return tuple(t.to(torch.complex128 if wide else torch.complex64) for t in results)


def _paired_inner(left: Tensor, right: Tensor) -> Tensor:
    """``2 Re(sum_n left_rn right_sn)`` over conjugate pairs: (R, H, N), (Q, H, N) to (H, R, Q)."""
    return 2 * torch.einsum("rhn,qhn->hrq", left, right).real
