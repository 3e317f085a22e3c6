"""The chunk matrices of ``ssm_conv`` for a diagonal or diagonal-plus-low-rank model."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint
from . import kernels  # noqa: F401 (C++ and CUDA)

find_implementations(__name__, "ssm_chunk", "ssm_chunk_backward")


def ssm_chunk(
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    *,
    tail: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The matrices that ``ops.ssm_conv`` takes, of ``x_t = A x_{t-1} + b u_t, y_t = 2 Re(c x_t)`` over conjugate pairs.

    ``A x = a x + sum_r p_r 2 Re(sum_n q_rn x_n)``, as in ``ops.ssm_step``; the state has S = 2 N real entries.

    Args:
        a: diagonal ``(H, N)``, complex64 or complex128 as all the tensors. Everything is computed in complex128.
        p, q: low-rank factors ``(R, H, N)``; ``q`` enters as it is, not conjugated. R = 0 is a diagonal model.
        b: input weights ``(H, N)``.
        c: readouts ``(C, H, N)``. Its dtype is that of the results.
        chunk: T, a power of two.
        tail: give all powers A^(2^i), not a_chunk alone.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``taps`` (C, H, T), ``e_out`` (C, H, S, T) and ``e_in`` (H, T, S) in the real dtype of ``c``, and ``a_powers``
        (H, log2(T) + 1 or 1, S, S) in float64, or of a diagonal model (H, log2(T) + 1 or 1, N) in complex128.

    Differentiable in all tensors, any number of times.
    """
    checks.tensors(a=a, p=p, q=q, b=b, c=c)
    for name, value in (("a", a), ("p", p), ("q", q), ("b", b), ("c", c)):
        checks.dtype(name, value, checks.COMPLEX)
    checks.shape("a", a, (("H", None), ("N", None)))
    last = (("H", a.shape[0]), ("N", a.shape[1]))
    checks.shape("p", p, (("R", None), *last))
    checks.shape("q", q, (("R", p.shape[0]), *last))
    checks.shape("b", b, last)
    checks.shape("c", c, (("C", None), *last))
    checks.integer("chunk", chunk, 1)
    if chunk & (chunk - 1):
        raise ValueError(f"chunk must be a power of two, got {chunk}")
    wide = (t.to(torch.complex128) for t in (a, p, q, b))
    taps, reads, e_in, a_powers = _ssm_chunk(*wide, c, chunk, tail, choose("ssm_chunk", backend, c))
    return taps, reads.mT, e_in, a_powers


def _fake(
    a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, chunk: int, tail: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels, heads, pairs = c.shape
    real, size, count = c.real.dtype, 2 * pairs, chunk.bit_length() if tail else 1
    return (
        c.new_empty((channels, heads, chunk), dtype=real),
        c.new_empty((channels, heads, chunk, size), dtype=real),
        c.new_empty((heads, chunk, size), dtype=real),
        a.new_empty((heads, count, size, size), dtype=torch.float64)
        if p.shape[0]
        else a.new_empty((heads, count, pairs)),
    )


_ssm_chunk, _ = register_with_adjoint(
    "ssm_chunk",
    "a: HN, p: RHN, q: RHN, b: HN, c: CHN, chunk: int, tail: bool",
    "taps: CHT, reads: CHTS, e_in: HTS, a_powers: H...",
    fake=_fake,
    missing="c",
)
