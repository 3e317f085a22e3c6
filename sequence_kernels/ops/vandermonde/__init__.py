"""Vandermonde products: the convolution kernel of a diagonal state-space model, and their transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..layouts import conjugated
from ..registration import gradient_for, register

find_implementations(__name__, "vandermonde", "vandermonde_transpose")


def vandermonde(
    v: Tensor,
    x: Tensor,
    L: int,
    *,
    conjugate: bool = True,
    power: int = 0,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sums of exponentials: ``out[l] = sum_n v_n l^power exp(x_n l)`` for ``0 <= l < L``.

    Args:
        v: weights ``(..., N)``, float32, float64, complex64 or complex128.
        x: exponents ``(..., N)``, of any of these dtypes; its leading dimensions broadcast with those of ``v``.
        L: number of positions, at least 0.
        conjugate: ``v`` and ``x`` hold one of each conjugate pair, and both are summed: the result is twice the real
            part, and real.
        power: the p of ``l^p``, 0 to 1000; the derivative of order p with respect to ``x``.
        dtype: float16 or bfloat16 for a real result that feeds a convolution in half precision: everything is computed
            and accumulated in the precision of ``v`` and ``x``, the result rounded once, its gradient not at all.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(..., L)``; real if ``conjugate``, else in the promoted dtype of ``v`` and ``x``; or in ``dtype``.

    The kernel of a diagonal SSM is ``vandermonde(C * B_bar, log(A_bar), L)`` (Gu et al., S4D, 2022, section 3). The
    product is differentiable any number of times: its derivatives are products of the same two families.
    """
    checks.tensors(v=v, x=x)
    checks.dtype("v", v, checks.REAL + checks.COMPLEX)
    checks.dtype("x", x, checks.REAL + checks.COMPLEX)
    checks.same_last_dim("v", v, "x", x, "N")
    checks.broadcastable(v=v, x=x)
    checks.integer("L", L, 0)
    checks.integer("power", power, 0, 1000)
    v, x = checks.promoted(v, x)
    if dtype is not None and dtype not in checks.HALF:
        raise TypeError(f"dtype must be None or one of float16, bfloat16, got {dtype}")
    if dtype is not None and v.is_complex() and not conjugate:
        raise ValueError(f"dtype={dtype} needs a real result: conjugate=True, or real v and x")
    out = _vandermonde(v, x, L, conjugate, power, choose("vandermonde", backend, v))
    return out if dtype is None else out.to(dtype)


def vandermonde_transpose(g: Tensor, x: Tensor, *, power: int = 0, backend: str | None = None) -> Tensor:
    """Moments of a sequence: ``out[n] = sum_l g_l l^power exp(x_n l)``.

    Args:
        g: ``(..., L)``, float32, float64, complex64 or complex128.
        x: exponents ``(..., N)``, of any of these dtypes; its leading dimensions broadcast with those of ``g``.
        power: the p of ``l^p``, 0 to 1000.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(..., N)`` in the promoted dtype of ``g`` and ``x``.

    The transpose of ``vandermonde(..., conjugate=False)`` as a linear map of ``v``.
    """
    checks.tensors(g=g, x=x)
    checks.dtype("g", g, checks.REAL + checks.COMPLEX)
    checks.dtype("x", x, checks.REAL + checks.COMPLEX)
    checks.has_last_dim("g", g, "L")
    checks.has_last_dim("x", x, "N")
    checks.broadcastable(g=g, x=x)
    checks.integer("power", power, 0, 1000)
    real = torch.float64 if torch.float64 in (g.real.dtype, x.real.dtype) else torch.float32
    g, x = (t.to(checks.COMPLEX_OF[real] if t.is_complex() else real) for t in (g, x))
    return _vandermonde_transpose(g, x, power, choose("vandermonde_transpose", backend, g))


def _vandermonde_fake(v: Tensor, x: Tensor, L: int, conjugate: bool, power: int, backend: str) -> Tensor:
    shape = torch.broadcast_shapes(v.shape[:-1], x.shape[:-1])
    return v.new_empty((*shape, L), dtype=v.real.dtype if conjugate else v.dtype)


def _vandermonde_backward(
    needed: Sequence[bool], inputs: tuple[Any, ...], g: Tensor
) -> tuple[Tensor | None, ...]:
    """``dv = s VT_p(g, x*)`` and ``dx = s v* VT_{p+1}(g, x*)``, with s = 2 for conjugate pairs, else 1."""
    v, x, _, conjugate, power, backend = inputs
    scale = 2 if conjugate else 1

    def moments(power: int) -> Tensor:
        return scale * _vandermonde_transpose(g, conjugated(x), power, backend)

    dv = gradient_for(v, moments(power)) if needed[0] else None
    dx = gradient_for(x, v.conj() * moments(power + 1)) if needed[1] else None
    return dv, dx


def _transpose_fake(g: Tensor, x: Tensor, power: int, backend: str) -> Tensor:
    shape = torch.broadcast_shapes(g.shape[:-1], x.shape[:-1])
    return g.new_empty((*shape, x.shape[-1]), dtype=torch.promote_types(g.dtype, x.dtype))


def _transpose_backward(
    needed: Sequence[bool], inputs: tuple[Any, ...], h: Tensor
) -> tuple[Tensor | None, ...]:
    """``dg = V_p(h, x*)`` (its real part if g is real) and ``dx = h VT_{p+1}(g*, x*)``."""
    g, x, power, backend = inputs
    xc = conjugated(x)
    dg = dx = None
    if needed[0]:
        pairs = x.is_complex() and not g.is_complex()
        dg = _vandermonde(*checks.promoted(h, xc), g.shape[-1], pairs, power, backend)
        dg = gradient_for(g, dg / 2 if pairs else dg)
    if needed[1]:
        moments = _vandermonde_transpose(conjugated(g), xc, power + 1, backend)
        dx = gradient_for(x, h * moments)
    return dg, dx


_vandermonde = register(
    "vandermonde",
    "v: *N, x: *N, L: SymInt, conjugate: bool, power: int",
    "out: *L",
    fake=_vandermonde_fake,
    backward=_vandermonde_backward,
)
_vandermonde_transpose = register(
    "vandermonde_transpose",
    "g: *L, x: *N, power: int",
    "out: *N",
    fake=_transpose_fake,
    backward=_transpose_backward,
)
