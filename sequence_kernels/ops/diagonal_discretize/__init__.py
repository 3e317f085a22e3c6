"""The discretisation of diagonal models: the parameters of ``ops.ssm_step`` and ``ops.ssm_chunk``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations, implement_natively
from ..registration import register_with_adjoint

METHODS = ("zoh", "bilinear")

find_implementations(__name__, "diagonal_discretize", "diagonal_discretize_backward")
for _op in ("diagonal_discretize", "diagonal_discretize_backward"):
    implement_natively(_op, "cpu", "cuda")


def diagonal_discretize(
    a: Tensor,
    b: Tensor,
    dt: Tensor,
    *,
    method: str = "zoh",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The discrete form of ``x' = a x + b u``, elementwise, for ``ops.ssm_step``.

    Args:
        a: eigenvalues ``(S, N)``, complex64 or complex128, in 1 / unit of time; head h has copy h mod S.
        b: input weights ``(S, N)``, complex.
        dt: step sizes ``(H)``, float32 or float64; H is a multiple of S.
        method: "zoh" (input constant during a step) or "bilinear" (Tustin).
        dtype: of the results, complex64 or complex128; None: that of the parameters. It is computed in complex128.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``a_minus_one`` and ``b``, ``(H, N)``. Differentiable any number of times.
    """
    if dtype not in (None, *checks.COMPLEX):
        raise TypeError(f"dtype must be None or one of complex64, complex128, got {dtype}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if torch.compiler.is_compiling() or not _plain(a, b, dt):
        _check(a, b, dt)
        a, b = checks.promoted(a, b)
        dt = dt.double()
    wide = (a.dtype if dtype is None else dtype) == torch.complex128
    chosen = choose("diagonal_discretize", backend, a)
    return _diagonal_discretize(a, b, dt, method == "bilinear", wide, chosen)


def _plain(a: Any, b: Any, dt: Any) -> bool:
    """Whether all is plainly as the checks want it, in one precision: in 2 us instead of 20."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(dt, Tensor)):
        return False
    good = a.dim() == 2 and a.shape == b.shape and dt.dim() == 1 and a.device == b.device == dt.device
    good = good and a.dtype in checks.COMPLEX and a.dtype == b.dtype and dt.dtype == torch.float64
    return good and len(a) > 0 and len(dt) % len(a) == 0


def _check(a: Tensor, b: Tensor, dt: Tensor) -> None:
    checks.tensors(a=a, b=b, dt=dt)
    for name, value in (("a", a), ("b", b)):
        checks.dtype(name, value, checks.COMPLEX)
    checks.dtype("dt", dt, checks.REAL)
    checks.shape("a", a, (("S", None), ("N", None)))
    checks.shape("b", b, (("S", a.shape[0]), ("N", a.shape[1])))
    checks.shape("dt", dt, (("H", None),))
    if len(dt) % len(a) if len(a) else len(dt):
        raise ValueError(f"dt must have shape (H) with H a multiple of S = {len(a)}, got {tuple(dt.shape)}")


def _fake(a: Tensor, b: Tensor, dt: Tensor, bilinear: bool, wide: bool, backend: str) -> tuple[Tensor, ...]:
    dtype, shape = torch.complex128 if wide else torch.complex64, (dt.shape[0], a.shape[1])
    return a.new_empty(shape, dtype=dtype), a.new_empty(shape, dtype=dtype)


_diagonal_discretize, _ = register_with_adjoint(
    "diagonal_discretize",
    "a: GN, b: GN, dt: H, bilinear: bool, wide: bool",
    "a_minus_one: HN, next_b: HN",
    fake=_fake,
    missing="a",
)
