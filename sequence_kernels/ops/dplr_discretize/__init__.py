"""The bilinear discretisation of diagonal-plus-low-rank models: the parameters of ``ops.ssm_step``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations, implement_natively
from ..registration import register_with_adjoint

find_implementations(__name__, "dplr_discretize", "dplr_discretize_backward")
for _op in ("dplr_discretize", "dplr_discretize_backward"):
    implement_natively(_op, "cpu", "cuda")


def dplr_discretize(
    w: Tensor,
    p: Tensor,
    b: Tensor,
    dt: Tensor,
    *,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The discrete form of ``x' = (diag(w) - P P^*) x + b u`` for ``ops.ssm_step``, by the bilinear transform.

    Args:
        w: poles ``(S, N)``, complex64 or complex128, one of each conjugate pair; head h has copy h mod S.
        p: low-rank factor ``(R, S, N)``, any R >= 0; complex, as ``b``.
        b: input ``(S, N)``.
        dt: step sizes ``(H)``, float32 or float64; H is a multiple of S.
        dtype: of the results, complex64 or complex128; None: that of the parameters. It is computed in complex128.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``a_minus_one`` ``(H, N)``, ``p`` and ``q`` ``(R, H, N)``, ``b`` ``(H, N)``.

    Formula: Gu et al., S4 (2021), appendix C.2, with Woodbury's identity. Differentiable any number of times.
    """
    if dtype not in (None, *checks.COMPLEX):
        raise TypeError(f"dtype must be None or one of complex64, complex128, got {dtype}")
    if torch.compiler.is_compiling() or not _plain(w, p, b, dt):
        _check(w, p, b, dt)
        w, p, b = checks.promoted(w, p, b)
        dt = dt.double()
    wide = (w.dtype if dtype is None else dtype) == torch.complex128
    return _dplr_discretize(w, p, b, dt, wide, choose("dplr_discretize", backend, w))


def _plain(w: Any, p: Any, b: Any, dt: Any) -> bool:
    """Whether all is plainly as the checks want it, in one precision: in 2 us instead of 20."""
    if not (
        isinstance(w, Tensor) and isinstance(p, Tensor) and isinstance(b, Tensor) and isinstance(dt, Tensor)
    ):
        return False
    good = w.dim() == 2 and p.dim() == 3 and dt.dim() == 1 and p.shape[1:] == w.shape == b.shape
    good = good and w.dtype in checks.COMPLEX and w.dtype == p.dtype == b.dtype and dt.dtype == torch.float64
    return good and w.device == p.device == b.device == dt.device and len(w) > 0 and len(dt) % len(w) == 0


def _check(w: Tensor, p: Tensor, b: Tensor, dt: Tensor) -> None:
    checks.tensors(w=w, p=p, b=b, dt=dt)
    for name, value in (("w", w), ("p", p), ("b", b)):
        checks.dtype(name, value, checks.COMPLEX)
    checks.dtype("dt", dt, checks.REAL)
    checks.shape("w", w, (("S", None), ("N", None)))
    last = (("S", w.shape[0]), ("N", w.shape[1]))
    checks.shape("p", p, (("R", None), *last))
    checks.shape("b", b, last)
    checks.shape("dt", dt, (("H", None),))
    if len(dt) % len(w) if len(w) else len(dt):
        raise ValueError(f"dt must have shape (H) with H a multiple of S = {len(w)}, got {tuple(dt.shape)}")


def _fake(w: Tensor, p: Tensor, b: Tensor, dt: Tensor, wide: bool, backend: str) -> tuple[Tensor, ...]:
    dtype, shape = torch.complex128 if wide else torch.complex64, (dt.shape[0], w.shape[1])
    ranks = (p.shape[0], *shape)
    return tuple(w.new_empty(s, dtype=dtype) for s in (shape, ranks, ranks, shape))


_dplr_discretize, _ = register_with_adjoint(
    "dplr_discretize",
    "w: GN, p: RGN, b: GN, dt: H, wide: bool",
    "a_minus_one: HN, next_p: RHN, q: RHN, next_b: HN",
    fake=_fake,
    missing="w",
)
