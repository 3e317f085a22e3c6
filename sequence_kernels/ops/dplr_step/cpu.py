"""Recurrent steps by the C++ kernels (csrc/ssm_step)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ..dispatch import implement
from ..ssm_step.cpu import step, step_in_place


@implement("dplr_step", "cpu", needs=native.needs("cpu"))
def dplr_step(
    state: Tensor, u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor]:
    state = state.contiguous()
    next_state = torch.empty_like(state)
    return step("dplr_step", state, u, (a, p, q, b, c), d, next_state), next_state


@implement("dplr_step_", "cpu", needs=native.needs("cpu"))
def dplr_step_(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state_indices: Tensor | None,
) -> Tensor:
    return step_in_place("dplr_step", state, u, (a, p, q, b, c), d, state_indices)
