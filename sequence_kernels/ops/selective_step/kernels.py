"""The selective steps by GPU kernels, which read the rows of all inputs in their own dtypes and at any distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layouts import plain

#: ``(state, state_indices, u, delta, a, b, c, d, z, delta_bias, softplus, least, most, next_state) -> y``: steps from
#: ``state`` to ``next_state``, which may be the same and are (slots, H, P, N). One dimension of batch; a row of an
#: input is contiguous, its dtype its own, all other tensors are contiguous; ``state_indices`` (rows) is int64 or None.
Kernel = Callable[..., Tensor]


def steps(kernel: Kernel) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """What implements ``selective_step``, and the same in place, by a kernel."""

    def run(
        state: Tensor,
        given: tuple[Tensor | None, ...],
        state_indices: Tensor | None,
        numbers: Any,
        to: Tensor,
    ) -> Tensor:
        u, delta, a, b, c, d, z, bias = given
        assert u is not None
        batch = u.dim() - 2
        a, d, bias = (None if t is None else plain(t) for t in (a, d, bias))
        rows, delta, b, c, z = (None if t is None else _rows(t, batch) for t in (u, delta, b, c, z))
        state, to = (t.view(math.prod(t.shape[:-3]), *t.shape[-3:]) for t in (state, to))
        y = kernel(state, state_indices, rows, delta, a, b, c, d, z, bias, *numbers, to)
        return y.view(u.shape)

    def step(state: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        state = plain(state)
        following = torch.empty_like(state)
        return run(state, rest[:8], None, rest[8:], following), following

    def step_(state: Tensor, *rest: Any) -> Tensor:
        state_indices = rest[8]
        if state_indices is not None:
            state_indices = plain(state_indices.to(torch.int64))
        there = plain(state)
        y = run(there, rest[:8], state_indices, rest[9:], there)
        if there is not state:
            state.copy_(there)
        return y

    return step, step_


def _rows(t: Tensor, batch: int) -> Tensor:
    """(rows, ...), each row contiguous: one that is part of a wider projection is read where it lies."""
    t = t if batch == 1 else t.reshape(math.prod(t.shape[:batch]), *t.shape[batch:])
    inside = 1
    for size, stride in zip(reversed(t.shape[1:]), reversed(t.stride()[1:]), strict=True):
        if size != 1 and stride != inside:
            return plain(t)
        inside *= size
    return t
