"""Cauchy products: the generating function of a diagonal-plus-low-rank state-space model, and their transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..layouts import conjugated
from ..registration import gradient_for, register

find_implementations(__name__, "cauchy", "cauchy_transpose")


def cauchy(
    v: Tensor, z: Tensor, w: Tensor, *, conjugate: bool = True, order: int = 1, backend: str | None = None
) -> Tensor:
    """Sums of partial fractions: ``out[l] = sum_n v_n / (z_l - w_n)^order``, over conjugate pairs too if asked.

    Args:
        v: weights ``(..., N)``, float32, float64, complex64 or complex128.
        z: nodes ``(..., L)``. A node with an infinite part gives exactly 0, in value and gradient.
        w: poles ``(..., N)``. The leading dimensions of ``v``, ``z`` and ``w`` broadcast together.
        conjugate: ``v`` and ``w`` hold one of each conjugate pair: add ``conj(v_n) / (z_l - conj(w_n))^order``.
        order: order q of the poles, 1 to 1000; the derivative of order q - 1 with respect to ``w``, over (q - 1)!.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(..., L)`` in the promoted dtype of ``v``, ``z`` and ``w``.

    Formula: Gu et al., S4 (2021), appendix C.3. Differentiable any number of times in all three arguments.
    """
    checks.tensors(v=v, z=z, w=w)
    for name, value in (("v", v), ("z", z), ("w", w)):
        checks.dtype(name, value, checks.REAL + checks.COMPLEX)
    checks.same_last_dim("v", v, "w", w, "N")
    checks.has_last_dim("z", z, "L")
    checks.broadcastable(v=v, z=z, w=w)
    checks.integer("order", order, 1, 1000)
    v, z, w = checks.promoted(v, z, w)
    return _cauchy(v, z, w, conjugate, order, choose("cauchy", backend, v))


def cauchy_transpose(
    g: Tensor, z: Tensor, w: Tensor, *, conjugate: bool = False, order: int = 1, backend: str | None = None
) -> Tensor:
    """The transpose of a Cauchy product: ``out[n] = sum_l g_l / (z_l - w_n)^order``, over conjugate pairs if asked.

    Args:
        g: weights of the nodes ``(..., L)``, float32, float64, complex64 or complex128.
        z: nodes ``(..., L)``. A node with an infinite part adds exactly 0.
        w: poles ``(..., N)``. The leading dimensions of all three broadcast together.
        conjugate: ``g`` and ``z`` are one of each conjugate pair: add ``conj(g_l) / (conj(z_l) - w_n)^order``.
        order: order q of the poles, 1 to 1000.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(..., N)`` in the promoted dtype of ``g``, ``z`` and ``w``.
    """
    checks.tensors(g=g, z=z, w=w)
    for name, value in (("g", g), ("z", z), ("w", w)):
        checks.dtype(name, value, checks.REAL + checks.COMPLEX)
    checks.same_last_dim("g", g, "z", z, "L")
    checks.has_last_dim("w", w, "N")
    checks.broadcastable(g=g, z=z, w=w)
    checks.integer("order", order, 1, 1000)
    g, z, w = checks.promoted(g, z, w)
    return _cauchy_transpose(g, z, w, conjugate, order, choose("cauchy_transpose", backend, g))


def _cauchy_fake(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int, backend: str) -> Tensor:
    shape = torch.broadcast_shapes(v.shape[:-1], z.shape[:-1], w.shape[:-1])
    return v.new_empty((*shape, z.shape[-1]))


def _cauchy_backward(needed: Sequence[bool], inputs: tuple[Any, ...], g: Tensor) -> tuple[Tensor | None, ...]:
    """``dv = CT_q(g, z*, w*)``, ``dw = v* q CT_{q+1}(g, z*, w*)``, ``dz = -q g C_{q+1}(v, z, w)*``, pairs or not."""
    v, z, w, conjugate, q, backend = inputs

    def moments(order: int) -> Tensor:
        return _cauchy_transpose(g, conjugated(z), conjugated(w), conjugate, order, backend)

    dv = gradient_for(v, moments(q)) if needed[0] else None
    dz = dw = None
    if needed[1]:
        dz = gradient_for(z, -q * g * _cauchy(v, z, w, conjugate, q + 1, backend).conj())
    if needed[2]:
        dw = gradient_for(w, q * v.conj() * moments(q + 1))
    return dv, dz, dw


def _transpose_fake(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int, backend: str) -> Tensor:
    shape = torch.broadcast_shapes(g.shape[:-1], z.shape[:-1], w.shape[:-1])
    return g.new_empty((*shape, w.shape[-1]))


def _transpose_backward(
    needed: Sequence[bool], inputs: tuple[Any, ...], h: Tensor
) -> tuple[Tensor | None, ...]:
    """``dg = C_q(h, z*, w*)``, ``dz = -q g* C_{q+1}(h, z*, w*)``, ``dw = q h CT_{q+1}(g, z, w)*``."""
    g, z, w, conjugate, q, backend = inputs

    def product(order: int) -> Tensor:
        return _cauchy(h, conjugated(z), conjugated(w), conjugate, order, backend)

    dg = gradient_for(g, product(q)) if needed[0] else None
    dz = gradient_for(z, -q * g.conj() * product(q + 1)) if needed[1] else None
    dw = None
    if needed[2]:
        dw = gradient_for(w, q * h * _cauchy_transpose(g, z, w, conjugate, q + 1, backend).conj())
    return dg, dz, dw


_cauchy = register(
    "cauchy",
    "v: *N, z: *L, w: *N, conjugate: bool, order: int",
    "out: *L",
    fake=_cauchy_fake,
    backward=_cauchy_backward,
)
_cauchy_transpose = register(
    "cauchy_transpose",
    "g: *L, z: *L, w: *N, conjugate: bool, order: int",
    "out: *N",
    fake=_transpose_fake,
    backward=_transpose_backward,
)
