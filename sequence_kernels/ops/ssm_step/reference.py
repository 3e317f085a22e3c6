"""One step of a state-space model and its adjoint in plain torch.

    s_r = 2 Re(sum_n q_rn x_n),  x' = x + ((a - 1) x + sum_r p_r s_r + b u),  y_c = 2 Re(sum_n c_n x'_n) + d_c u

With g' = dL/dx' + 2 sum_c g_c c* the whole gradient of x' and t_r = Re(sum_n p_rn* g'_n) that of s_r:
dx = g' + (a - 1)* g' + 2 sum_r t_r q_r*, d(a - 1) = sum x* g', db = sum u g', du = Re(sum_n b* g') + sum_c d_c g_c,
dc = 2 sum g_c x'*, dd = sum g_c u, dp_r = sum s_r g', dq_r = 2 sum t_r x*; sums without an index run over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..slots import in_place


def _next(
    state: Tensor, u: Tensor, a_minus_one: Tensor, b: Tensor, p: Tensor | None, q: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """x' and, with a low rank, the sums s (..., R, H)."""
    moved = a_minus_one * state + b * u.unsqueeze(-1).to(state.real.dtype)
    sums = None
    if p is not None and q is not None:
        sums = 2 * torch.einsum("...hn,rhn->...rh", state, q).real
        moved = moved + torch.einsum("...rh,rhn->...hn", sums.to(p.dtype), p)
    return state + moved, sums  # once, and last: what is lost then is all that a step loses


@implement("ssm_step", "torch")
def ssm_step(
    state: Tensor,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
) -> tuple[Tensor, Tensor]:
    following, _ = _next(state, u, a_minus_one, b, p, q)
    y = 2 * torch.einsum("...hn,chn->...ch", following, c).real
    if d is not None:
        y = y + d * u.unsqueeze(-2)
    return y.to(u.dtype).contiguous(), following


@implement("ssm_step_", "torch")
def ssm_step_(state: Tensor, u: Tensor, *rest: Tensor | None) -> Tensor:
    parameters, state_indices = rest[:-1], rest[-1]
    return in_place(lambda state, u: ssm_step(state, u, *parameters), state, (u,), state_indices)  # type: ignore


def ssm_step_backward(
    g: Tensor,
    g_state: Tensor,
    state: Tensor,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The adjoint above, of plain differentiable operations."""
    drive, g = u.unsqueeze(-1).to(state.real.dtype), g.to(c.real.dtype)
    following, sums = _next(state, u, a_minus_one, b, p, q)
    whole = g_state + 2 * (g.unsqueeze(-1) * c.conj()).sum(
        -3
    )  # no einsum: a vmap of before torch.func has none
    du, d_state = (b.conj() * whole).sum(-1).real, whole + a_minus_one.conj() * whole
    da, db = _over_batch(state.conj() * whole, 2), _over_batch(drive * whole, 2)
    dc = 2 * _over_batch(g.unsqueeze(-1) * following.conj().unsqueeze(-3), 3)
    dd = dp = dq = None
    if d is not None:
        du, dd = du + (g * d).sum(-2), _over_batch(g * u.unsqueeze(-2), 2)
    if p is not None and q is not None and sums is not None:
        d_sums = (whole.unsqueeze(-3) * p.conj()).sum(-1).real
        d_state = d_state + 2 * (d_sums.unsqueeze(-1) * q.conj()).sum(-3)
        dp = _over_batch(sums.unsqueeze(-1) * whole.unsqueeze(-3), 3)
        dq = 2 * _over_batch(d_sums.unsqueeze(-1) * state.conj().unsqueeze(-3), 3)
    return d_state, du.to(u.dtype), da, db, dc, dd, dp, dq


def _over_batch(t: Tensor, dims: int) -> Tensor:
    """Sum over all but the last ``dims`` dimensions."""
    return t.sum(tuple(range(t.dim() - dims))) if t.dim() > dims else t
