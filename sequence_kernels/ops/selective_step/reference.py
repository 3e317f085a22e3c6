"""One step of a time-varying recurrence in plain torch, on heads of P channels; a and d may have one entry a head.

dt = clamp(softplus(delta + bias)),  h' = h + (expm1(dt a) h + dt u b),  y = (sum_n c_n h'_n + d u) silu(z)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement
from ..slots import in_place


@implement("selective_step", "torch")
def selective_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    least: float,
    most: float,
) -> tuple[Tensor, Tensor]:
    heads, real = state.shape[-3], state.dtype
    dt = delta.to(real) if delta_bias is None else delta.to(real) + delta_bias
    dt = (F.softplus(dt) if softplus else dt).clamp(least, most)
    b, c = (_for_heads(t.to(real), heads).unsqueeze(-2) for t in (b, c))
    wide = u.to(real)
    drive = (dt.unsqueeze(-1) * wide).unsqueeze(-1)
    moved = torch.expm1(dt.unsqueeze(-1) * a).unsqueeze(-2) * state + drive * b
    following = state + moved  # once, and last: what is lost then is all that a step loses
    y = (c * following).sum(-1)
    y = y if d is None else y + d * wide
    y = y if z is None else y * F.silu(z.to(real))
    return y.to(u.dtype).clone(memory_format=torch.contiguous_format), following


def _for_heads(matrix: Tensor, heads: int) -> Tensor:
    """b or c, of groups of neighbouring heads, as (..., H, N)."""
    groups = matrix.shape[-2]
    return matrix.repeat_interleave(heads // groups if groups else 1, -2)


@implement("selective_step_", "torch")
def selective_step_(
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
    *numbers: Any,
) -> Tensor:
    def step(state: Tensor, *rows: Tensor | None) -> tuple[Tensor, Tensor]:
        u, delta, b, c, z = rows
        return selective_step(state, u, delta, a, b, c, d, z, delta_bias, *numbers)  # type: ignore[arg-type]

    return in_place(step, state, (u, delta, b, c, z), state_indices)
