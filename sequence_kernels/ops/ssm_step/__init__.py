"""One time step of a diagonal state-space model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose
from ..registration import register
from . import reference


def ssm_step(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence ``x' = a x + b u``, ``y = 2 Re(sum_n c x') + d u``.

    Args:
        state: x, complex ``(..., H, N)``, one of each conjugate pair; the leading dimensions are the batch.
        u: input ``(..., H)``, with the batch of ``state``; float16, bfloat16, float32 or float64.
        a, b: complex ``(H, N)``, in the dtype of ``state``.
        c: complex ``(C, H, N)``.
        d: real skip ``(C, H)``.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(..., C, H)`` in the dtype of ``u``, and the new state ``(..., H, N)``.

    Differentiable in every argument, any number of times.
    """
    check_step(state, u, d, {"a": a, "b": b}, {"c": c})
    return _ssm_step(state, u, a, b, c, d, choose("ssm_step", backend, state))


def check_step(
    state: Tensor, u: Tensor, d: Tensor | None, by_head: dict[str, Tensor], by_channel: dict[str, Tensor]
) -> None:
    """The checks that the steps of diagonal and of diagonal-plus-low-rank models share."""
    checks.tensors(state=state, u=u, **by_head, **by_channel, **({} if d is None else {"d": d}))
    checks.dtype("state", state, checks.COMPLEX)
    if state.dim() < 2:
        raise ValueError(f"state must have shape (..., H, N), got {tuple(state.shape)}")
    if u.shape != state.shape[:-1]:
        raise ValueError(f"u must have shape (..., H) = {tuple(state.shape[:-1])}, got {tuple(u.shape)}")
    double = state.dtype == torch.complex128
    checks.dtype("u", u, (torch.float64,) if double else (*checks.HALF, torch.float32))
    last = (("H", state.shape[-2]), ("N", state.shape[-1]))
    for name, value in by_head.items():
        checks.shape(name, value, last)
    for name, value in by_channel.items():
        checks.shape(name, value, (("R" if name in "pq" else "C", None), *last))
    for name, value in (by_head | by_channel).items():
        checks.dtype(name, value, (state.dtype,))
    if d is not None:
        checks.shape("d", d, (("C", by_channel["c"].shape[0]), last[0]))
        checks.dtype("d", d, (state.real.dtype,))


def step_fake(state: Tensor, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Empty tensors like the results of a step."""
    return u.new_empty((*u.shape[:-1], c.shape[0], u.shape[-1])), state.new_empty(state.shape)


def _fake(state: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return step_fake(state, u, c)


def step_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep all tensors that a step was given."""
    ctx.save_for_backward(*inputs[:-1])


def _backward(ctx: Any, g: Tensor, g_state: Tensor) -> tuple[Tensor | None, ...]:
    return (*reference.ssm_step_backward(g, g_state, *ctx.saved_tensors), None)


_ssm_step = register(
    "ssm_step",
    "(Tensor state, Tensor u, Tensor a, Tensor b, Tensor c, Tensor? d, str backend) -> (Tensor, Tensor)",
    fake=_fake,
    setup_context=step_save,
    backward=_backward,
    follows_autocast=(1,),
)
