"""Powers of a diagonal-plus-low-rank matrix times vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose
from ..registration import register
from . import cpu, reference  # noqa: F401 (register the implementations)


def dplr_krylov(
    x: Tensor, a: Tensor, p: Tensor, q: Tensor, count: int, *, backend: str | None = None
) -> Tensor:
    """Krylov sequences ``y_j = A^j x`` for ``j < count``, ``A y = a y + sum_r p_r 2 Re(sum_n q_rn y_n)``.

    Args:
        x: K vectors of each of H heads ``(K, H, N)``, complex64 or complex128, one of each conjugate pair.
        a: diagonal ``(H, N)``, in the dtype of ``x``, as ``p`` and ``q``.
        p, q: low-rank factors ``(R, H, N)``, any R >= 0; ``q`` enters as it is, not conjugated. With the two
            exchanged, ``y_j`` are the functionals ``x A^j``.
        count: number of vectors, at least 0.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``(K, H, count, N)``.

    These make the chunk matrices of S4 (``ssm.DPLRSystem``). Differentiable in all tensors, any number of times.
    """
    checks.tensors(x=x, a=a, p=p, q=q)
    checks.dtype("x", x, checks.COMPLEX)
    checks.shape("x", x, (("K", None), ("H", None), ("N", None)))
    last = (("H", x.shape[1]), ("N", x.shape[2]))
    checks.shape("a", a, last)
    checks.shape("p", p, (("R", None), *last))
    checks.shape("q", q, (("R", p.shape[0]), *last))
    for name, value in (("a", a), ("p", p), ("q", q)):
        checks.dtype(name, value, (x.dtype,))
    checks.integer("count", count, 0)
    return _dplr_krylov(x, a, p, q, count, choose("dplr_krylov", backend, x))


def _fake(x: Tensor, a: Tensor, p: Tensor, q: Tensor, count: int, backend: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], count, x.shape[-1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, a, p, q, _, ctx.backend = inputs
    ctx.save_for_backward(output, a, p, q)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    y, a, p, q = ctx.saved_tensors
    if torch.is_grad_enabled():  # a derivative of this derivative is wanted: leave a graph
        gradients = reference.dplr_krylov_backward(g, y, a, p, q)
    else:
        gradients = _dplr_krylov_backward(g, y, a, p, q, ctx.backend)
    return (*gradients, None, None)


def _backward_fake(g: Tensor, y: Tensor, a: Tensor, p: Tensor, q: Tensor, backend: str) -> tuple[Tensor, ...]:
    return (
        g.new_empty((*g.shape[:-2], g.shape[-1])),
        *(t.new_empty(t.shape) for t in (a, p, q)),
    )


_dplr_krylov = register(
    "dplr_krylov",
    "(Tensor x, Tensor a, Tensor p, Tensor q, SymInt count, str backend) -> Tensor",
    fake=_fake,
    setup_context=_save,
    backward=_backward,
)
_dplr_krylov_backward = register(
    "dplr_krylov_backward",
    "(Tensor g, Tensor y, Tensor a, Tensor p, Tensor q, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_backward_fake,
)
