"""S4's generating function: the frequency response of a discretised diagonal-plus-low-rank system, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register
from . import adjoint

find_implementations(__name__, "dplr_generating", "dplr_generating_backward")


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
    real = checks.REAL_OF[c.dtype]
    half = dt.to(real).unsqueeze(-1) / 2
    chosen = choose("dplr_generating", backend, c)
    return _dplr_generating(c, half * p, q, half * b, half * w, t.to(real), chosen)


def _fake(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, backend: str) -> Tensor:
    return c.new_empty((*c.shape[:2], t.shape[0]))


def _backward(needed: Sequence[bool], inputs: tuple[Any, ...], g: Tensor) -> tuple[Tensor | None, ...]:
    dt = adjoint.gradient_of_nodes(g, *inputs) if needed[5] else None
    return (*_dplr_generating_backward(g, *inputs), dt)


def _backward_fake(g: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


_TAKES = "c: CHN, p: RHN, q: RHN, b: HN, w: HN, t: L"
_dplr_generating = register("dplr_generating", _TAKES, "out: CHL", fake=_fake, backward=_backward)
_dplr_generating_backward = register(
    "dplr_generating_backward",
    f"g: CHL, {_TAKES}",
    "dc: CHN, dp: RHN, dq: RHN, db: HN, dw: HN",
    fake=_backward_fake,
    composite=adjoint.gradients,
)
