"""One step of a diagonal state-space model and its adjoint in plain torch.

    x' = a x + b u,  y_c = 2 Re(sum_n c_n x'_n) + d_c u

With p = dL/dx' + 2 sum_c g_c c* the whole gradient of x': dx = a* p, da = sum x* p, db = sum u p,
du = Re(sum_n b* p) + sum_c d_c g_c, dc = 2 sum g_c x'*, dd = sum g_c u; sums without an index run over the batch.
"""

from __future__ import annotations

import functools
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
    step: Callable[..., tuple[Tensor, Tensor]], state: Tensor, u: Tensor, *parameters: Tensor | None
) -> Tensor:
    """Step, write the new states where the old ones were, and return y. The last parameter: ``state_indices``.

    No shape depends on a value, so that a CUDA graph can capture it. An idle row does what the first busy one does,
    and writes the same bits to the same slot; where all are idle, slot 0 gets its own bits.
    """
    slots, parameters = parameters[-1], parameters[:-1]
    if slots is None:
        y, new_state = step(state, u, *parameters)
        state.copy_(new_state)
        return y
    busy = slots >= 0
    if len(u) == 0 or len(state) == 0:
        return step(state.new_zeros((len(u), *state.shape[1:])), torch.zeros_like(u), *parameters)[0]
    row = torch.where(busy, torch.arange(len(u), device=u.device), busy.to(torch.int8).argmax())
    place = slots[row].clamp(min=0)
    old = state[place]
    y, new_state = step(old, u[row], *parameters)
    state[place] = torch.where(busy[row].view(-1, 1, 1), new_state, old)
    return y.masked_fill_(~busy.view(-1, *(1,) * (y.dim() - 1)), 0)


implement("ssm_step_", "torch")(functools.partial(in_place, ssm_step))


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
