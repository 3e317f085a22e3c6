"""The steps by kernels that take what all of them take: contiguous tensors, and where the new state goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..checks import REAL_OF
from ..dispatch import implement
from ..layouts import plain

#: ``(state, state_indices, u, a_minus_one, b, c, d, p, q, next_state) -> y``: steps from ``state`` to ``next_state``,
#: which may be the same. All contiguous; u is of the state's precision, ``state_indices`` (rows) int64. It, d and, of a
#: diagonal system, p and q may be None.
Kernel = Callable[..., Tensor]


def compiled(*arguments: Any) -> Tensor:
    """The kernels of the compiled libraries (csrc/ssm_step), for tensors on any device that they serve."""
    return _compiled()(*arguments)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.ops.sequence_kernels_native.ssm_step.default


def steps(kernel: Kernel) -> tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """What implements ``ssm_step``, and the same in place, by a kernel."""

    def run(
        state: Tensor,
        u: Tensor,
        parameters: tuple[Tensor | None, ...],
        state_indices: Tensor | None,
        to: Tensor,
    ) -> Tensor:
        parameters = tuple([None if t is None else plain(t) for t in parameters])
        real = REAL_OF[state.dtype]
        wide = u if u.dtype == real else u.to(real)
        y = kernel(state, state_indices, plain(wide), *parameters, to)
        return y if y.dtype == u.dtype else y.to(u.dtype)

    def step(state: Tensor, u: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        state = plain(state)
        next_state = torch.empty_like(state)
        return run(state, u, parameters, None, next_state), next_state

    def step_(state: Tensor, u: Tensor, *parameters: Tensor | None) -> Tensor:
        state_indices, parameters = parameters[-1], parameters[:-1]
        if state_indices is not None:
            state_indices = plain(state_indices.to(torch.int64))
        there = plain(state)
        y = run(there, u, parameters, state_indices, there)
        if there is not state:
            state.copy_(there)
        return y

    return step, step_


step, step_ = steps(compiled)
for _library in ("cpu", "cuda"):
    implement("ssm_step", _library)(step)
    implement("ssm_step_", _library)(step_)
