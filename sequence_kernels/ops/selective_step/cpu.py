"""The selective steps by the C++ kernel (csrc/selective_step)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import plain


def _run(state: Tensor, inputs: Any, state_indices: Tensor | None, numbers: Any, to: Tensor) -> Tensor:
    """``state`` and ``to`` are contiguous, and may be the same."""
    u, delta, a, b, c, d, z, bias = inputs
    batch, real = u.dim() - 2, state.dtype
    rows = [t for t in (u, delta, b, c, z) if t is not None]
    rows = [t if t.dtype == real and t.is_contiguous() else plain(t.to(real)) for t in rows]
    if batch != 1:
        rows = [t.view(math.prod(t.shape[:batch]), *t.shape[batch:]) for t in rows]
        state, to = (t.view(math.prod(t.shape[:-3]), *t.shape[-3:]) for t in (state, to))
    a, d, bias = (None if t is None else plain(t) for t in (a, d, bias))
    indices = None if state_indices is None else plain(state_indices.to(torch.int64))
    native = torch.ops.sequence_kernels_native.selective_step.default
    y = native(
        state, indices, *rows[:2], a, *rows[2:4], d, None if z is None else rows[4], bias, *numbers, to
    )
    return y if y.shape == u.shape and y.dtype == u.dtype else y.view(u.shape).to(u.dtype)


@implement("selective_step", "cpu")
def selective_step(state: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    state = plain(state)
    following = torch.empty_like(state)
    return _run(state, rest[:8], None, rest[8:], following), following


@implement("selective_step_", "cpu")
def selective_step_(state: Tensor, *rest: Any) -> Tensor:
    there = plain(state)
    y = _run(there, rest[:8], rest[8], rest[9:], there)
    if there is not state:
        state.copy_(there)
    return y
