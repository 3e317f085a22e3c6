"""S4's generating function: the frequency response of a discretised diagonal-plus-low-rank system, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..cauchy import _cauchy, _cauchy_transpose
from ..dispatch import choose
from ..registration import register
from . import cpu, reference  # noqa: F401 (register the implementations)
from .reference import inverse_small, small_product, stacked


def dplr_generating(
    c: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    w: Tensor,
    dt: Tensor,
    t: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """``(1 + i t) C (z - A)^-1 b`` at ``z = 2 i t / dt`` with ``A = diag(w) - P Q``, over conjugate pairs.

    Args:
        c: readouts ``(C, H, N)``, complex64 or complex128, one of each conjugate pair.
        p, q: low-rank factors ``(R, H, N)`` in the dtype of ``c``, as ``b`` and ``w``, any R >= 0:
            ``P Q x = sum_r p_r 2 Re(sum_n q_rn x_n)``. ``q`` is not conjugated: S4's is ``p.conj()``.
        b: input ``(H, N)``.
        w: poles ``(H, N)``.
        dt: step sizes ``(H)``, float32 or float64.
        t: nodes ``(L)``, float32 or float64: ``tan(angle / 2)`` is the node of the root of unity ``e^{-i angle}``, and
            infinite at -1, where the result is the limit ``2 Re(sum_n c_n b_n) dt / 2`` and has no slope.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(C, H, L)`` in the dtype of ``c``. Its inverse FFT over the nodes of all roots of unity of one order is the
        convolution kernel of the bilinear discretisation, if ``c`` is the truncated readout.

    Formula: Gu et al., S4 (2021), appendix C.3. Differentiable any number of times in all arguments.
    """
    checks.tensors(c=c, p=p, q=q, b=b, w=w, dt=dt, t=t)
    checks.dtype("c", c, checks.COMPLEX)
    checks.shape("c", c, (("C", None), ("H", None), ("N", None)))
    last = (("H", c.shape[1]), ("N", c.shape[2]))
    checks.shape("p", p, (("R", None), *last))
    checks.shape("q", q, (("R", p.shape[0]), *last))
    checks.shape("b", b, last)
    checks.shape("w", w, last)
    checks.shape("dt", dt, last[:1])
    checks.shape("t", t, (("L", None),))
    for name, value in (("p", p), ("q", q), ("b", b), ("w", w)):
        checks.dtype(name, value, (c.dtype,))
    for name, value in (("dt", dt), ("t", t)):
        checks.dtype(name, value, checks.REAL)
    real = c.dtype.to_real()
    half = dt.to(real).unsqueeze(-1) / 2
    chosen = choose("dplr_generating", backend, c)
    return _dplr_generating(c, half * p, q, half * b, half * w, t.to(real), chosen)


def _fake(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, backend: str) -> Tensor:
    return c.new_empty((*c.shape[:2], t.shape[0]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    """Through the Cauchy products M at i t again: the derivative of ``out_c`` is ``(1 + i t) (1, -l_c) dM (1, -a)^T``.

    ``a = X M_qb``, ``l = M_cp X``, ``X = (I + M_qp)^-1``. An infinite node has products and gradients of 0 here, and
    adds those of its limit, ``2 Re(sum_n c_n b_n)``.
    """
    c, p, q, b, w, t = ctx.saved_tensors
    channels, infinite = c.shape[0], t.isinf()
    left, right = stacked(c, q), stacked(b.unsqueeze(0), p)
    v = left.unsqueeze(1) * right
    z = torch.complex(torch.zeros_like(t), t)
    m = _cauchy(v, z, w, True, 1, ctx.backend)
    x = inverse_small(m[channels:, 1:])
    a, lows = small_product(x, m[channels:, :1]), small_product(m[:channels, 1:], x)

    factor = (1 + z.masked_fill(infinite, 0)).masked_fill(infinite, 0)
    gu = g * factor.conj()
    rows = torch.cat((gu, -(gu.unsqueeze(1) * lows.conj()).sum(0))).unsqueeze(1)
    gm = torch.cat((rows, -rows * a.squeeze(1).conj()), 1)
    weights = torch.cat((gm, gm.conj()), -1)
    nodes = torch.cat((-z, z))
    dv = _cauchy_transpose(weights, nodes, w.conj_physical(), 1, ctx.backend)
    limit = 2 * torch.where(infinite, g.real, 0).sum(-1, keepdim=True)
    dleft = (dv * right.conj()).sum(1)
    dright = (dv * left.unsqueeze(1).conj()).sum(0)
    dc, db = dleft[:channels] + limit * b.conj(), dright[0] + (limit * c.conj()).sum(0)
    dw = dt = None
    if ctx.needs_input_grad[4]:
        squares = _cauchy_transpose(weights, nodes, w.conj_physical(), 2, ctx.backend)
        dw = (v.conj() * squares).sum((0, 1))
    if ctx.needs_input_grad[5]:
        bracket = m[:channels, 0] - small_product(m[:channels, 1:], a).squeeze(1)
        slopes = _cauchy(v, z, w, True, 2, ctx.backend)
        dt = (gm.conj() * slopes).imag.sum((0, 1, 2)) - (g.conj() * bracket).imag.sum((0, 1))
    return dc, dright[1:], dleft[channels:], db, dw, dt, None


_dplr_generating = register(
    "dplr_generating",
    "(Tensor c, Tensor p, Tensor q, Tensor b, Tensor w, Tensor t, str backend) -> Tensor",
    fake=_fake,
    setup_context=_save,
    backward=_backward,
)
