"""The discretisation in plain torch, by Woodbury, and its adjoint. The README has the formulas."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import by_head


class _Model(NamedTuple):
    """What both passes begin with."""

    w: Tensor  # (H, N), in complex128 as all but half, small and inverse
    p: Tensor  # (R, H, N)
    b: Tensor
    half: Tensor  # dt / 2, (H, 1)
    g: Tensor
    gp: Tensor
    q: Tensor
    small: Tensor  # M (H, R, R)
    inverse: Tensor  # K


def _model(w: Tensor, p: Tensor, b: Tensor, dt: Tensor) -> _Model:
    w, p, b = (by_head(t.to(torch.complex128), len(dt)) for t in (w, p, b))
    half = dt.unsqueeze(-1) / 2
    g = 1 / (1 - half * w)
    gp, q = g * p, g * p.conj()
    small = _paired_inner(p.conj(), gp)
    matrix = torch.eye(len(p), dtype=half.dtype, device=half.device) + half.unsqueeze(-1) * small
    inverse = torch.linalg.inv(matrix) if len(p) > 1 else matrix.reciprocal()
    return _Model(w, p, b, half, g, gp, q, small, inverse)


@implement("dplr_discretize", "torch")
def dplr_discretize(w: Tensor, p: Tensor, b: Tensor, dt: Tensor, wide: bool) -> tuple[Tensor, ...]:
    w, _, b, half, g, gp, q, _, inverse = _model(w, p, b, dt)
    lift = -2 * half * torch.einsum("rhn,hrq->qhn", gp, inverse.to(gp.dtype))
    pull = torch.einsum("qhn,hq->hn", lift, _paired_inner(q, b.unsqueeze(0)).squeeze(-1).to(lift.dtype))
    results = (2 * half * w * g, lift, q, half * (2 * g * b + pull))
    return tuple(t.to(torch.complex128 if wide else torch.complex64) for t in results)


@implement("dplr_discretize_backward", "torch")
def dplr_discretize_backward(
    g_a: Tensor,
    g_lift: Tensor,
    g_pull: Tensor,
    g_drive: Tensor,
    w: Tensor,
    p: Tensor,
    b: Tensor,
    dt: Tensor,
    wide: bool,
) -> tuple[Tensor, ...]:
    model = _model(w, p, b, dt)
    half, g, gp, inverse = model.half, model.g, model.gp, model.inverse
    g_a, g_lift, g_pull, g_drive = (t.to(torch.complex128) for t in (g_a, g_lift, g_pull, g_drive))
    conj_g, gb, wg, step = g.conj(), g * model.b, model.w * g, 2 * half
    v = _paired_inner(model.q, model.b.unsqueeze(0)).squeeze(-1)  # (H, R)
    from_drive = _paired_inner(gp.conj(), g_drive.unsqueeze(0)).squeeze(-1) / 2
    rho = -step * torch.einsum("hr,hrs->hs", from_drive, inverse)
    lifts = g_lift + (half * v).mT.unsqueeze(-1) * g_drive
    kappa = _paired_inner(gp.conj(), lifts) / 2
    g_small = step.unsqueeze(-1) * (
        inverse.mT @ kappa @ inverse.mT
    )  # over dt / 2: the gradient of M is half of it
    pulls = g_pull + (step * rho).mT.unsqueeze(-1) * model.b.conj()
    g_gp = step * (_mixed(g_small.mT, model.p) - _mixed(inverse, lifts))
    g_p = step * _mixed(g_small, gp) + conj_g * g_gp + g * pulls.conj()
    g_b = step * conj_g * (g_drive + _mixed(rho.unsqueeze(1), model.p).squeeze(0))
    g_g = step * (model.w.conj() * g_a + model.b.conj() * g_drive)
    g_g = g_g + (model.p.conj() * g_gp + model.p * pulls).sum(0)
    g_w = step * conj_g * g_a + half * conj_g * conj_g * g_g
    direct = wg.conj() * g_a + gb.conj() * g_drive + (wg * g).conj() * g_g / 2
    of_ranks = (v * rho).sum(-1) / 2 + (g_small * model.small / 2 - inverse * kappa).sum((1, 2))
    copies = len(w)
    return (
        *(of_copies(t, copies).to(w.dtype) for t in (g_w, g_p, g_b)),
        (direct.real.sum(-1) + of_ranks).to(dt.dtype),
    )


def _mixed(weights: Tensor, vectors: Tensor) -> Tensor:
    """``sum_s weights_rs vectors_s``: (H, R, Q) and (Q, H, N) to (R, H, N)."""
    return torch.einsum("hrq,qhn->rhn", weights.to(vectors.dtype), vectors)


def of_copies(of_heads: Tensor, copies: int) -> Tensor:
    """The sum over the heads that have a copy: (..., H, N) to (..., S, N)."""
    if of_heads.shape[-2] == copies:
        return of_heads
    return of_heads.unflatten(-2, (-1, copies)).sum(-3)


def _paired_inner(left: Tensor, right: Tensor) -> Tensor:
    """``2 Re(sum_n left_rn right_sn)`` over conjugate pairs: (R, H, N), (Q, H, N) to (H, R, Q)."""
    return 2 * torch.einsum("rhn,qhn->hrq", left, right).real
