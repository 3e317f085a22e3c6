"""The convolution of short sequences by the first taps of a state-space model's kernel, straight from the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint
from ..ssm_conv import empty_like

find_implementations(__name__, "ssm_direct", "ssm_direct_backward")


def ssm_direct(
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x_t = A x_{t-1} + b u_t, y_t = 2 Re(c x_t) + d u_t`` from ``x_{-1} = 0``, as a sum over the inputs before.

    ``A x = a x + sum_r p_r 2 Re(sum_n q_rn x_n)``, as in ``ops.ssm_chunk``. It makes L taps and takes L^2 / 2
    multiply-adds a row and head: for short sequences, where ``ops.ssm_conv`` spends its time on matrices.

    Args:
        u: input ``(B, H, L)``, float16, bfloat16, float32 or float64; any L >= 0, at any strides.
        a: diagonal ``(H, N)``, complex64 or complex128, as p, q and b.
        p, q: low-rank factors ``(R, H, N)``; ``q`` enters as it is, not conjugated. R = 0 is a diagonal model.
        b: input weights ``(H, N)``.
        c: readouts ``(C, H, N)``, complex128 if and only if ``u`` is float64, else complex64.
        d: skip ``(C, H)``, in the real dtype of ``c``.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(B, C, H, L)`` in the dtype of ``u``. The taps are computed in complex128, the sums in that of ``c``.

    Differentiable in every tensor, any number of times.
    """
    given = {"a": a, "p": p, "q": q, "b": b, "c": c}
    checks.tensors(u=u, **given, **({} if d is None else {"d": d}))
    checks.dtype("u", u, (*checks.HALF, *checks.REAL))
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    for name, value in given.items():
        checks.dtype(name, value, (checks.COMPLEX_OF[real],) if name == "c" else checks.COMPLEX)
    checks.shape("u", u, (("B", None), ("H", None), ("L", None)))
    checks.shape("a", a, (("H", u.shape[1]), ("N", None)))
    last = (("H", u.shape[1]), ("N", a.shape[1]))
    checks.shape("p", p, (("R", None), *last))
    checks.shape("q", q, (("R", p.shape[0]), *last))
    checks.shape("b", b, last)
    checks.shape("c", c, (("C", None), *last))
    d = c.new_zeros(c.shape[:2], dtype=real) if d is None else d
    checks.dtype("d", d, (real,))
    checks.shape("d", d, (("C", c.shape[0]), ("H", u.shape[1])))
    wide = (t.to(torch.complex128) for t in (a, p, q, b))
    return _ssm_direct(u, *wide, c, d, choose("ssm_direct", backend, u))


def _fake(u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, *rest: Any) -> Tensor:
    return empty_like(u, rest[-1], c.shape[0])


_ssm_direct, _ = register_with_adjoint(
    "ssm_direct",
    "u: BHL, a: HN, p: RHN, q: RHN, b: HN, c: CHN, d: CH",
    "y: BCHL",
    fake=_fake,
    missing="d",
    like_first=empty_like,
    follows_autocast=(0,),
)
