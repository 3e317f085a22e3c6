"""One step of a diagonal state-space model and its adjoint in plain torch.

    x' = a x + b u,  y_c = 2 Re(sum_n c_n x'_n) + d_c u

With p = dL/dx' + 2 sum_c g_c c* the whole gradient of x': dx = a* p, da = sum x* p, db = sum u p,
du = Re(sum_n b* p) + sum_c d_c g_c, dc = 2 sum g_c x'*, dd = sum g_c u; sums without an index run over the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import implement


def readout(state: Tensor, u: Tensor, c: Tensor, d: Tensor | None) -> Tensor:
    """y (..., C, H) from a state (..., H, N), in the dtype of u."""
    y = 2 * torch.einsum("...hn,chn->...ch", state, c).real
    if d is not None:
        y = y + d * u.unsqueeze(-2)
    return y.to(u.dtype).contiguous()


@implement("ssm_step", "torch")
def ssm_step(
    state: Tensor, u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor]:
    new_state = a * state + b * u.unsqueeze(-1).to(state.real.dtype)
    return readout(new_state, u, c, d), new_state


def in_place(
    step: Callable[..., tuple[Tensor, Tensor]],
    state: Tensor,
    u: Tensor,
    *parameters: Tensor | None,
    state_indices: Tensor | None,
) -> Tensor:
    """Step, write the new states where the old ones were, and return y."""
    if state_indices is None:
        y, new_state = step(state, u, *parameters)
        state.copy_(new_state)
        return y
    rows = (state_indices >= 0).nonzero().squeeze(-1)
    slots = state_indices[rows]
    y_rows, state[slots] = step(state[slots], u[rows], *parameters)
    return y_rows.new_zeros((len(u), *y_rows.shape[1:])).index_copy_(0, rows, y_rows)


@implement("ssm_step_", "torch")
def ssm_step_(
    state: Tensor,
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    state_indices: Tensor | None,
) -> Tensor:
    return in_place(ssm_step, state, u, a, b, c, d, state_indices=state_indices)


def over_batch(t: Tensor, dims: int) -> Tensor:
    """Sum over all but the last ``dims`` dimensions."""
    return t.sum(tuple(range(t.dim() - dims))) if t.dim() > dims else t


def readout_backward(
    g: Tensor, g_state: Tensor, new_state: Tensor, u: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The whole gradient of the new state; the skip's part of du; dc; dd."""
    g = g.to(c.real.dtype)
    p = g_state + 2 * torch.einsum("...ch,chn->...hn", g.to(c.dtype), c.conj())
    dc = 2 * over_batch(g.unsqueeze(-1) * new_state.conj().unsqueeze(-3), 3)
    if d is None:
        return p, torch.zeros_like(u, dtype=g.dtype), dc, None
    return p, (g * d).sum(-2), dc, over_batch(g * u.unsqueeze(-2), 2)


def ssm_step_backward(
    g: Tensor,
    g_state: Tensor,
    state: Tensor,
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The adjoint above, of plain differentiable operations."""
    drive = u.unsqueeze(-1).to(state.real.dtype)
    p, du, dc, dd = readout_backward(g, g_state, a * state + b * drive, u, c, d)
    du = du + (b.conj() * p).sum(-1).real
    da, db = over_batch(state.conj() * p, 2), over_batch(drive * p, 2)
    return a.conj() * p, du.to(u.dtype), da, db, dc, dd
