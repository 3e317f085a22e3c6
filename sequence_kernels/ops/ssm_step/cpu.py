"""Recurrent steps by the C++ kernels (csrc/ssm_step)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ... import native
from ..dispatch import implement


@functools.cache
def _native(name: str) -> Callable[..., Tensor]:
    return getattr(torch.ops.sequence_kernels_native, name).default


@functools.cache
def _nothing(dtype: torch.dtype) -> Tensor:
    """What the native ops take where there is no tensor."""
    return torch.empty(0, dtype=dtype)


def step(
    name: str,
    state: Tensor,
    u: Tensor,
    parameters: tuple[Tensor, ...],
    d: Tensor | None,
    next_state: Tensor,
    state_indices: Tensor | None = None,
) -> Tensor:
    """y (..., C, H) of the native op ``name``, from ``state`` and to ``next_state``, which are contiguous."""
    real = torch.float64 if state.dtype == torch.complex128 else torch.float32
    y = _native(name)(
        state,
        _nothing(torch.int64) if state_indices is None else state_indices.to(torch.int64).contiguous(),
        u.to(real).contiguous(),
        *[parameter.contiguous() for parameter in parameters],
        _nothing(real) if d is None else d.contiguous(),
        next_state,
    )
    return y if y.dtype == u.dtype else y.to(u.dtype)


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
    copy = state.resolve_conj().clone(memory_format=torch.contiguous_format)
    y = step(name, copy, u, parameters, d, copy, state_indices)
    state.copy_(copy)
    return y


@implement("ssm_step", "cpu", needs=native.needs("cpu"))
def ssm_step(
    state: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor]:
    state = state.contiguous()
    next_state = torch.empty_like(state)
    return step("ssm_step", state, u, (a, b, c), d, next_state), next_state


@implement("ssm_step_", "cpu", needs=native.needs("cpu"))
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
