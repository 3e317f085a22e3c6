"""The bilinear discretisation of diagonal-plus-low-rank models: the parameters of ``ops.ssm_step``."""

from __future__ import annotations

import torch
from torch import Tensor

from ...internals import only_runs
from ..dispatch import choose
from ..layouts import by_head


def dplr_discretize(
    w: Tensor, p: Tensor, b: Tensor, dt: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``a_minus_one`` (H, N), ``p``, ``q`` (R, H, N), ``b`` (H, N) of a step of ``x' = (diag(w) - P P^*) x + B u``.

    Args:
        w, b: complex ``(S, N)``, one of each conjugate pair; head h has copy h mod S.
        p: complex ``(R, S, N)``, in the dtype of ``w``.
        dt: float64 ``(H)``, H a multiple of S.
        dtype: of the results, complex64 or complex128; all is computed in complex128.

    Differentiable any number of times: where a gradient is wanted it is plain torch.
    """
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (w, p, b, dt))
    plain = wanted or torch.compiler.is_compiling() or not w.dtype == p.dtype == b.dtype
    if plain or choose("ssm_step", None, w) != "cpu" or not only_runs("cpu"):
        return _by_torch(w, p, b, dt, dtype)
    w, p, b, dt = (t.resolve_conj().contiguous() for t in (w, p, b, dt))
    found = torch.ops.sequence_kernels_native.dplr_discretize.default(w, p, b, dt, dtype == torch.complex128)
    return found if found[0].dtype == dtype else tuple(t.to(dtype) for t in found)


def _by_torch(
    w: Tensor, p: Tensor, b: Tensor, dt: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By Woodbury, with ``g = 1 / (1 - w dt/2)``: csrc/dplr_discretize/cpu.cpp has the formulas."""
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
    a_minus_one, lift, q, drive = (t.to(dtype) for t in results)
    return a_minus_one, lift, q, drive


def _paired_inner(left: Tensor, right: Tensor) -> Tensor:
    """``2 Re(sum_n left_rn right_sn)`` over conjugate pairs: (R, H, N), (Q, H, N) to (H, R, Q)."""
    return 2 * torch.einsum("rhn,qhn->hrq", left, right).real
