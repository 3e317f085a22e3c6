"""One time step of the recurrences whose step, input and readout change with time: of Mamba, and of Mamba-2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register
from ..selective_scan import limits

find_implementations(__name__, "selective_step", "selective_step_")


def selective_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    delta_limit: tuple[float, float] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of ``h' = h + (expm1(dt a) h + dt b u)``, ``y = sum_n c h' + d u``: of ``selective_scan`` or ``ssd``.

    ``dt = clamp(softplus(delta + delta_bias), *delta_limit)``; with ``z`` the output is ``y silu(z)``. ``a`` is real
    and has the form of the scan, (D, N), or that of the duality, (H).

    Args:
        state: h, ``(..., D, N)``, or ``(..., H, P, N)``; float32 or float64. The leading dimensions are the batch.
        u: input ``(..., D)``, or ``(..., H, P)``; float16, bfloat16, float32, or float64 if ``state`` is. So are
            ``delta``, ``b``, ``c`` and ``z``.
        delta: time steps, ``(..., D)``, or ``(..., H)``.
        a: ``(D, N)``, or ``(H,)``, in the dtype of ``state``. So are ``d`` and ``delta_bias``.
        b, c: ``(..., N)``, or ``(..., G, N)`` for G groups of neighbouring channels or heads.
        d: skip ``(D,)``, or ``(H,)`` or ``(H, P)``.
        z: gate, of the shape of ``u``.
        delta_bias: ``(D,)``, or ``(H,)``.
        delta_softplus: apply softplus, which is the identity above 20, as torch's.
        delta_limit: least and largest dt; the gradient beyond them is zero.
        backend: None chooses the fastest that can serve the call.

    Returns:
        the output, of the shape and dtype of ``u``, and the new state.

    Differentiable in every tensor, any number of times.
    """
    tensors = _checked(state, u, delta, a, b, c, d, z, delta_bias, None)
    numbers = bool(delta_softplus), *limits(delta_limit)
    y, following = _selective_step(*tensors, *numbers, choose("selective_step", backend, state))
    return y.reshape(u.shape), following.reshape(state.shape)


def selective_step_(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    delta_limit: tuple[float, float] | None = None,
    state_indices: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``selective_step`` in place: writes the new state into ``state`` and returns y.

    Args:
        state_indices: int32 or int64 ``(B,)``, to serve some of many streams, as in ``ssm_step_``: ``state`` is a pool
            ``(slots, ...)``, row i drives the state ``state_indices[i]``, -1 marks an idle row, whose y is 0. A slot
            that no row names keeps its bits; no slot may be named twice. The values are checked on the CPU only.

    The others are those of ``selective_step``. There is no gradient: raises RuntimeError if one would be needed.
    """
    tensors = _checked(state, u, delta, a, b, c, d, z, delta_bias, state_indices)
    numbers = bool(delta_softplus), *limits(delta_limit)
    backend = choose("selective_step_", backend, state)
    return _selective_step_(*tensors, state_indices, *numbers, backend).reshape(u.shape)


def _checked(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    state_indices: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The tensors as the op takes them: heads of P channels, of which a scan has D of one."""
    optional = {"d": d, "z": z, "delta_bias": delta_bias, "state_indices": state_indices}
    given = {name: value for name, value in optional.items() if value is not None}
    checks.tensors(state=state, u=u, delta=delta, a=a, b=b, c=c, **given)
    checks.dtype("state", state, checks.REAL)
    inputs = (*checks.HALF, torch.float32, *((torch.float64,) if state.dtype == torch.float64 else ()))
    for name, value in {"u": u, "delta": delta, "b": b, "c": c, "z": z}.items():
        if value is not None:
            checks.dtype(name, value, inputs)
    for name, value in {"a": a, "d": d, "delta_bias": delta_bias}.items():
        if value is not None:
            checks.dtype(name, value, (state.dtype,))
    if a.dim() not in (1, 2):
        raise ValueError(f"a must have shape (D, N) or (H,), got {tuple(a.shape)}")
    scan = a.dim() == 2
    last = (("D", a.shape[0]), ("N", a.shape[1])) if scan else (("H", a.shape[0]), ("P", None), ("N", None))
    if state.dim() < len(last):
        form = ", ".join(name for name, _ in last)
        raise ValueError(f"state must have shape (..., {form}), got {tuple(state.shape)}")
    if state_indices is not None:
        checks.shape("state", state, (("slots", None), *last))
        checks.shape("state_indices", state_indices, (("B", u.shape[0] if u.dim() else None),))
        checks.integers("state_indices", state_indices, -1, len(state) - 1)
        batch: tuple[tuple[str, Any], ...] = (("B", len(state_indices)),)
    else:
        batch = tuple(("", size) for size in state.shape[: state.dim() - len(last)])
    sizes = state.shape[state.dim() - len(last) :]
    checks.shape("state", state, (*(batch if state_indices is None else (("slots", None),)), *last))
    heads = (*batch, (last[0][0], sizes[0]))
    channels = heads if scan else (*heads, ("P", sizes[1]))
    checks.shape("u", u, channels)
    checks.shape("delta", delta, heads)
    if z is not None:
        checks.shape("z", z, channels)
    if delta_bias is not None:
        checks.shape("delta_bias", delta_bias, (heads[-1],))
    if d is not None:
        checks.shape("d", d, (heads[-1],) if scan or d.dim() == 1 else channels[len(batch) :])
    b, c = (_in_groups(name, value, batch, *heads[-1], sizes[-1]) for name, value in (("b", b), ("c", c)))
    if b.shape != c.shape:
        raise ValueError(f"b and c must have the same shape, got {tuple(b.shape)} and {tuple(c.shape)}")
    if scan:
        state, u, z = state.unsqueeze(-2), u.unsqueeze(-1), None if z is None else z.unsqueeze(-1)
    a = a if scan else a.unsqueeze(-1)
    d = d.unsqueeze(-1) if d is not None and d.dim() == 1 else d
    return state, u, delta, a, b, c, d, z, delta_bias


def _in_groups(
    name: str, value: Tensor, batch: tuple[tuple[str, Any], ...], label: str, heads: int, size: int
) -> Tensor:
    """b or c as (..., G, N)."""
    entries = ("N", size)
    if value.dim() == len(batch) + 1:
        checks.shape(name, value, (*batch, entries))
        return value.unsqueeze(-2)
    checks.shape(name, value, (*batch, ("G", None), entries))
    count = value.shape[-2]
    if (heads % count if count else heads) != 0:
        raise ValueError(f"the groups G of {name} must divide {label}={heads}, got G={count}")
    return value


def _fake(state: Tensor, u: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), state.new_empty(state.shape)


_INPUTS = "u: ...HP, delta: ...H, a: HN, b: ...KN, c: ...KN, d?: HP, z?: ...HP, delta_bias?: H"  # a and d: or (H, 1)
_NUMBERS = "softplus: bool, least: float, most: float"
_selective_step = register(
    "selective_step",
    f"state: ...HPN, {_INPUTS}, {_NUMBERS}",
    "y: ...HP, next_state: ...HPN",
    fake=_fake,
    follows_autocast=(1, 4, 5, 7),
)
_selective_step_ = register(
    "selective_step_",
    f"state!: ...HPN, {_INPUTS}, state_indices?: B int, {_NUMBERS}",
    "y: ...HP",
    fake=lambda state, u, *rest: u.new_empty(u.shape),
    follows_autocast=(1, 4, 5, 7),
)
