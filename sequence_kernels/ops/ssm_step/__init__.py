"""One time step of a state-space model: diagonal, or diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register
from . import kernels, reference  # noqa: F401 (kernels: C++ and CUDA)

find_implementations(__name__, "ssm_step", "ssm_step_")


def ssm_step(
    state: Tensor,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    p: Tensor | None = None,
    q: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of ``x' = x + ((a - 1) x + sum_r p_r 2 Re(sum_n q_rn x_n) + b u)``, ``y = 2 Re(sum_n c x') + d u``.

    Args:
        state: x, complex ``(..., H, N)``, one of each conjugate pair; the leading dimensions are the batch.
        u: input ``(..., H)``, with the batch of ``state``; float16, bfloat16, float32, or float64 if ``state`` is
            complex128.
        a_minus_one: the diagonal of A - I, complex ``(H, N)``, in the dtype of ``state``: where it is small it has
            digits that a itself has not.
        b: complex ``(H, N)``, in the dtype of ``state``.
        c: complex ``(C, H, N)``.
        d: real skip ``(C, H)``.
        p, q: complex ``(R, H, N)``, any R >= 0; neither for a diagonal model. ``q`` enters as it is, not conjugated.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(..., C, H)`` in the dtype of ``u``, and the new state ``(..., H, N)``.

    Differentiable in every argument, any number of times.
    """
    if torch.compiler.is_compiling() or not _plain(state, u, a_minus_one, b, c, d, p, q):
        _check(state, u, a_minus_one, b, c, d, p, q)
    return _ssm_step(state, u, a_minus_one, b, c, d, p, q, choose("ssm_step", backend, state))


def ssm_step_(
    state: Tensor,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    p: Tensor | None = None,
    q: Tensor | None = None,
    *,
    state_indices: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``ssm_step`` in place: writes the new state into ``state`` and returns ``y`` ``(..., C, H)``.

    Args:
        state_indices: int32 or int64 ``(B,)``, to serve some of many streams. ``state`` is then a pool
            ``(slots, H, N)``, and row i of ``u`` ``(B, H)`` drives the state ``state_indices[i]``. -1 marks an idle
            row: its y is 0. A slot that no row names keeps its bits; no slot may be named twice. The values are
            checked on the CPU only.

    The others are those of ``ssm_step``. There is no gradient: raises RuntimeError if one would be needed.
    """
    _check(state, u, a_minus_one, b, c, d, p, q, state_indices)
    return _ssm_step_(
        state, u, a_minus_one, b, c, d, p, q, state_indices, choose("ssm_step_", backend, state)
    )


def _check(
    state: Tensor,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
    state_indices: Tensor | None = None,
) -> None:
    optional = {"d": d, "p": p, "q": q, "state_indices": state_indices}
    given = {name: value for name, value in optional.items() if value is not None}
    checks.tensors(state=state, u=u, a_minus_one=a_minus_one, b=b, c=c, **given)
    checks.dtype("state", state, checks.COMPLEX)
    if state.dim() < 2:
        raise ValueError(f"state must have shape (..., H, N), got {tuple(state.shape)}")
    if state_indices is not None:
        _check_state_indices(state, u, state_indices)
    elif u.shape != state.shape[:-1]:
        raise ValueError(f"u must have shape (..., H) = {tuple(state.shape[:-1])}, got {tuple(u.shape)}")
    wide = (torch.float64,) if state.dtype == torch.complex128 else ()
    checks.dtype("u", u, (*checks.HALF, torch.float32, *wide))
    last = (("H", state.shape[-2]), ("N", state.shape[-1]))
    matrices = {"a_minus_one": a_minus_one, "b": b, "c": c, "p": p, "q": q}
    for name, value in matrices.items():
        if value is not None:
            leading = () if value is a_minus_one or value is b else (("C" if name == "c" else "R", None),)
            checks.shape(name, value, (*leading, *last))
            checks.dtype(name, value, (state.dtype,))
    if (p is None) != (q is None) or (p is not None and q is not None and len(p) != len(q)):
        shapes = " and ".join("None" if t is None else str(tuple(t.shape)) for t in (p, q))
        raise ValueError(f"p and q must have the same rank R, got {shapes}")
    if d is not None:
        checks.shape("d", d, (("C", c.shape[0]), last[0]))
        checks.dtype("d", d, (state.real.dtype,))


def _plain(state: Any, u: Any, a_minus_one: Any, b: Any, c: Any, d: Any, p: Any, q: Any) -> bool:
    """Whether all is plainly as the checks want it, in the common precision: in 4 us instead of 30."""
    low_rank = () if p is None and q is None else (p, q)
    parameters = (a_minus_one, b, c, *low_rank)
    if not (isinstance(state, Tensor) and isinstance(u, Tensor)):
        return False
    shape, device = state.shape, state.device
    last = shape[-2:]
    good = len(last) == 2 and u.shape == shape[:-1] and u.device == device
    good = good and state.dtype == torch.complex64 and u.dtype == torch.float32
    for i, t in enumerate(parameters):
        good = good and isinstance(t, Tensor) and (t.shape if i < 2 else t.shape[1:]) == last
        good = good and t.dtype == torch.complex64 and t.device == device
    good = good and (not low_rank or p.shape == q.shape)
    if d is None or not good:
        return good
    return (
        isinstance(d, Tensor)
        and d.shape == (c.shape[0], shape[-2])
        and d.dtype == torch.float32
        and d.device == device
    )


def _check_state_indices(state: Tensor, u: Tensor, indices: Tensor) -> None:
    checks.shape("state", state, (("slots", None), ("H", None), ("N", None)))
    checks.shape("u", u, (("B", None), ("H", state.shape[-2])))
    checks.shape("state_indices", indices, (("B", len(u)),))
    checks.integers("state_indices", indices, -1, len(state) - 1)


def _empty_output(u: Tensor, c: Tensor) -> Tensor:
    return u.new_empty((*u.shape[:-1], c.shape[0], u.shape[-1]))


def _fake(
    state: Tensor, u: Tensor, a_minus_one: Tensor, b: Tensor, c: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return _empty_output(u, c), state.new_empty(state.shape)


def _backward(
    needed: Sequence[bool], inputs: tuple[Any, ...], g: Tensor, g_state: Tensor
) -> tuple[Tensor | None, ...]:
    return reference.ssm_step_backward(g, g_state, *inputs[:-1])


_PARAMETERS = "u: ...H, a_minus_one: HN, b: HN, c: CHN, d?: CH, p?: RHN, q?: RHN"
_ssm_step = register(
    "ssm_step",
    f"state: ...HN, {_PARAMETERS}",
    "y: ...CH, next_state: ...HN",
    fake=_fake,
    backward=_backward,
    follows_autocast=(1,),
)
_ssm_step_ = register(
    "ssm_step_",
    f"state!: ...HN, {_PARAMETERS}, state_indices?: B int",
    "y: ...CH",
    fake=lambda state, u, a_minus_one, b, c, *rest: _empty_output(u, c),
    follows_autocast=(1,),
)
