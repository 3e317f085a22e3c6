"""The steps by kernels that take what all of them take: contiguous tensors, and where the new state goes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement

#: ``(state, state_indices, u, a_minus_one, b, c, d, p, q, next_state) -> y``: steps from ``state`` to ``next_state``,
#: which may be the same. All contiguous; u is of the state's precision, ``state_indices`` (rows) int64. It, d and, of a
#: diagonal system, p and q may be None.
Kernel = Callable[..., Tensor]

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def _plain(t: Tensor) -> Tensor:
    """The tensor as a kernel reads it: contiguous, and no conjugation pending."""
    return t if t.is_contiguous() and not t.is_conj() else t.resolve_conj().contiguous()


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
        parameters = tuple([None if t is None else _plain(t) for t in parameters])
        wide = u if u.dtype == _REAL[state.dtype] else u.to(_REAL[state.dtype])
        y = kernel(state, state_indices, _plain(wide), *parameters, to)
        return y if y.dtype == u.dtype else y.to(u.dtype)

    def step(state: Tensor, u: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        state = _plain(state)
        next_state = torch.empty_like(state)
        return run(state, u, parameters, None, next_state), next_state

    def step_(state: Tensor, u: Tensor, *parameters: Tensor | None) -> Tensor:
        state_indices, parameters = parameters[-1], parameters[:-1]
        if state_indices is not None:
            state_indices = _plain(state_indices.to(torch.int64))
        plain = _plain(state)
        y = run(plain, u, parameters, state_indices, plain)
        if plain is not state:
            state.copy_(plain)
        return y

    return step, step_


step, step_ = steps(compiled)
for _library in ("cpu", "cuda"):
    implement("ssm_step", _library)(step)
    implement("ssm_step_", _library)(step_)
