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
    batch = u.dim() - 2

    def rows(t: Tensor | None) -> Tensor | None:
        """(rows, ...) in the precision of the state."""
        if t is None:
            return None
        return plain(t.to(state.dtype)).view(math.prod(t.shape[:batch]), *t.shape[batch:])

    def parameter(t: Tensor | None) -> Tensor | None:
        return None if t is None else plain(t)

    slots = math.prod(state.shape[:-3]), *state.shape[-3:]
    y = torch.ops.sequence_kernels_native.selective_step.default(
        state.view(slots),
        None if state_indices is None else plain(state_indices.to(torch.int64)),
        rows(u),
        rows(delta),
        parameter(a),
        rows(b),
        rows(c),
        parameter(d),
        rows(z),
        parameter(bias),
        *numbers,
        to.view(slots),
    )
    return y.view(u.shape).to(u.dtype)


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
