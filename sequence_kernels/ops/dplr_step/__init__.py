"""One time step of a diagonal-plus-low-rank state-space model, in O(N)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import choose, implementation
from ..registration import register
from ..ssm_step import check_step, in_place_fake, step_fake, step_save
from . import reference


def dplr_step(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of ``x' = a x + sum_r p_r 2 Re(sum_n q_rn x_n) + b u``, ``y = 2 Re(sum_n c x') + d u``.

    Args:
        state: x, complex ``(..., H, N)``, one of each conjugate pair; the leading dimensions are the batch.
        u: input ``(..., H)``, with the batch of ``state``; float16, bfloat16, float32 or float64.
        a, b: complex ``(H, N)``, in the dtype of ``state``.
        p, q: complex ``(R, H, N)``, any R >= 0. ``q`` enters as it is, not conjugated.
        c: complex ``(C, H, N)``.
        d: real skip ``(C, H)``.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(..., C, H)`` in the dtype of ``u``, and the new state ``(..., H, N)``.

    The bilinear discretisation of a diagonal-plus-low-rank matrix is 2 (I - A dt/2)^-1 - I, so it is again diagonal
    plus low rank, of the same rank (Woodbury). Differentiable in every argument, any number of times.
    """
    short = _check(state, u, a, p, q, b, c, d)
    chosen = choose("dplr_step", backend, state)
    if short:
        return implementation("dplr_step", chosen)(state, u, a, p, q, b, c, d)
    return _dplr_step(state, u, a, p, q, b, c, d, chosen)


def dplr_step_(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    state_indices: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``dplr_step`` in place: writes the new state into ``state`` and returns ``y`` ``(..., C, H)``.

    ``state_indices`` and the missing gradient are those of ``ssm_step_``, the other arguments those of ``dplr_step``.
    """
    _check(state, u, a, p, q, b, c, d, state_indices)
    return _dplr_step_(state, u, a, p, q, b, c, d, state_indices, choose("dplr_step_", backend, state))


def _check(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state_indices: Tensor | None = None,
) -> bool:
    short = check_step(state, u, d, {"a": a, "b": b}, {"p": p, "q": q, "c": c}, state_indices)
    if p.shape[0] != q.shape[0]:
        raise ValueError(f"p and q must have the same rank R, got {tuple(p.shape)} and {tuple(q.shape)}")
    return short


def _fake(
    state: Tensor, u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return step_fake(state, u, c)


def _backward(ctx: Any, g: Tensor, g_state: Tensor) -> tuple[Tensor | None, ...]:
    return (*reference.dplr_step_backward(g, g_state, *ctx.saved_tensors), None)


_dplr_step = register(
    "dplr_step",
    "(Tensor state, Tensor u, Tensor a, Tensor p, Tensor q, Tensor b, Tensor c, Tensor? d, str backend) "
    "-> (Tensor, Tensor)",
    fake=_fake,
    setup_context=step_save,
    backward=_backward,
    follows_autocast=(1,),
)
_dplr_step_ = register(
    "dplr_step_",
    "(Tensor(a!) state, Tensor u, Tensor a, Tensor p, Tensor q, Tensor b, Tensor c, Tensor? d, "
    "Tensor? state_indices, str backend) -> Tensor",
    fake=lambda state, u, a, p, q, b, c, *rest: in_place_fake(u, c),
    follows_autocast=(1,),
)
