"""Recurrent steps by the C++ kernels (csrc/ssm_step)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import native
from ..dispatch import implement


def needs(device: str, dtype: torch.dtype) -> str | None:
    return native.why_not("cpu")


def plain(tensor: Tensor) -> Tensor:
    """The numbers themselves side by side: no pending conjugation, no strides."""
    return tensor.resolve_conj().resolve_neg().contiguous()


def step(
    name: str,
    state: Tensor,
    u: Tensor,
    parameters: tuple[Tensor, ...],
    d: Tensor | None,
    next_state: Tensor,
    state_indices: Tensor | None = None,
) -> Tensor:
    """y (..., C, H) of the native op ``name``, which writes to ``next_state``; the two states are contiguous."""
    heads, pairs = state.shape[-2:]
    rows = u.shape[:-1]
    count = math.prod(rows)
    places = (count if state_indices is None else len(state), heads, pairs)
    real = torch.float64 if state.dtype == torch.complex128 else torch.float32
    y = getattr(torch.ops.sequence_kernels_native, name).default(
        state.view(places),
        torch.empty(0, dtype=torch.int64) if state_indices is None else state_indices.to(torch.int64),
        plain(u.to(real)).view(count, heads),
        *map(plain, parameters),
        torch.empty(0, heads, dtype=real) if d is None else plain(d),
        next_state.view(places),
    )
    return y.view(*rows, *y.shape[1:]).to(u.dtype)


def step_in_place(
    name: str,
    state: Tensor,
    u: Tensor,
    parameters: tuple[Tensor, ...],
    d: Tensor | None,
    state_indices: Tensor | None,
) -> Tensor:
    """``step`` from and to any layout of ``state``."""
    if state.is_contiguous() and not state.is_conj():
        return step(name, state, u, parameters, d, state, state_indices)
    copy = plain(state)
    y = step(name, copy, u, parameters, d, copy, state_indices)
    state.copy_(copy)
    return y


@implement("ssm_step", "cpu", needs=needs)
def ssm_step(
    state: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor]:
    next_state = torch.empty(state.shape, dtype=state.dtype)
    return step("ssm_step", plain(state), u, (a, b, c), d, next_state), next_state


@implement("ssm_step_", "cpu", needs=needs)
def ssm_step_(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state_indices: Tensor | None,
) -> Tensor:
    return step_in_place("ssm_step", state, u, (a, b, c), d, state_indices)
