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
from .reference import inverse_small, on_circle, stacked


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
    """Through the Cauchy products again: the derivative of ``out_c`` is ``u (1, -l_c) dM (1, -a)^T``.

    M are the products (README), ``a = cos X M_qb``, ``l = cos M_cp X``, ``X = (I + cos M_qp)^-1``, ``u = cos + i sin``.
    """
    c, p, q, b, w, t = ctx.saved_tensors
    channels = c.shape[0]
    left, right = stacked(c, q), stacked(b.unsqueeze(0), p)
    v = left.unsqueeze(1) * right
    infinite = t.isinf()
    cos, sin = on_circle(t)
    secant = torch.hypot(torch.ones_like(t), t.masked_fill(infinite, 0))
    z = torch.complex(torch.zeros_like(t), t)
    u = torch.complex(cos, sin)

    # M = secant * (the Cauchy products at i t), and 2 sum_n Re(v_n) / (i sin) at an infinite node
    limit = torch.complex(torch.zeros_like(sin), -2 * sin) * v.real.sum(-1, keepdim=True)
    m = torch.where(infinite, limit, secant * _cauchy(v, z, w, True, 1, ctx.backend))
    x = inverse_small(m[channels:, 1:], cos)
    xb = torch.einsum("rqhl,qhl->rhl", x, m[channels:, 0])
    a, lows = cos * xb, cos * torch.einsum("crhl,rqhl->cqhl", m[:channels, 1:], x)

    gu = g * u.conj()
    rows = torch.cat((gu, -torch.einsum("chl,crhl->rhl", gu, lows.conj())))
    columns = torch.cat((torch.ones_like(u).expand(1, *a.shape[1:]), -a)).conj()
    gm = rows.unsqueeze(1) * columns

    gc = (secant * gm).masked_fill(infinite, 0)
    weights = torch.cat((gc, gc.conj()), -1)
    nodes = torch.cat((z.conj(), z)).resolve_conj()
    wc = w.conj_physical()
    dv = _cauchy_transpose(weights, nodes, wc, 1, ctx.backend)
    dv = dv - 2 * torch.where(infinite, sin * gm.imag, 0).sum(-1, keepdim=True)
    dw = dt = None
    if ctx.needs_input_grad[4]:
        dw = (v.conj() * _cauchy_transpose(weights, nodes, wc, 2, ctx.backend)).sum((0, 1))
    if ctx.needs_input_grad[5]:
        out = m[:channels, 0] - torch.einsum("cqhl,qhl->chl", lows, m[channels:, 0])
        slope = torch.einsum("crhl,rqhl,qhl->chl", m[:channels, 1:], x, xb) * sin + 1j * out
        dm = sin * cos * m - 1j * secant * _cauchy(v, z, w, True, 2, ctx.backend)
        dt = cos.square() * (gu.conj() * slope).real.sum((0, 1)) + (gm.conj() * dm).real.sum((0, 1, 2))
    dleft = (dv * right.conj()).sum(1)
    dright = (dv * left.unsqueeze(1).conj()).sum(0)
    return dleft[:channels], dright[1:], dleft[channels:], dright[0], dw, dt, None


_dplr_generating = register(
    "dplr_generating",
    "(Tensor c, Tensor p, Tensor q, Tensor b, Tensor w, Tensor t, str backend) -> Tensor",
    fake=_fake,
    setup_context=_save,
    backward=_backward,
)
