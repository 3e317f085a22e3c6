"""One step of a diagonal-plus-low-rank state-space model and its adjoint in plain torch.

    s_r = 2 Re(sum_n q_rn x_n),  x' = a x + sum_r p_r s_r + b u,  y_c = 2 Re(sum_n c_n x'_n) + d_c u

With p' the whole gradient of x' and t_r = Re(sum_n p_rn* p'_n) that of s_r: dx = a* p' + 2 sum_r t_r q_r*,
dp_r = sum s_r p', dq_r = 2 sum t_r x*; the others as for a diagonal model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..dispatch import implement
from ..ssm_step.reference import in_place, over_batch, readout, readout_backward


def _next(state: Tensor, u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    sums = 2 * torch.einsum("...hn,rhn->...rh", state, q).real
    low_rank = torch.einsum("...rh,rhn->...hn", sums.to(p.dtype), p)
    return sums, a * state + low_rank + b * u.unsqueeze(-1).to(state.real.dtype)


@implement("dplr_step", "torch")
def dplr_step(
    state: Tensor, u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, d: Tensor | None
) -> tuple[Tensor, Tensor]:
    _, new_state = _next(state, u, a, p, q, b)
    return readout(new_state, u, c, d), new_state


implement("dplr_step_", "torch")(functools.partial(in_place, dplr_step))


def dplr_step_backward(
    g: Tensor,
    g_state: Tensor,
    state: Tensor,
    u: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The adjoint above, of plain differentiable operations."""
    sums, new_state = _next(state, u, a, p, q, b)
    whole, du, dc, dd = readout_backward(g, g_state, new_state, u, c, d)
    du = du + (b.conj() * whole).sum(-1).real
    d_sums = torch.einsum("...hn,rhn->...rh", whole, p.conj()).real
    d_state = a.conj() * whole + 2 * torch.einsum("...rh,rhn->...hn", d_sums.to(q.dtype), q.conj())
    dp = over_batch(sums.unsqueeze(-1) * whole.unsqueeze(-3), 3)
    dq = 2 * over_batch(d_sums.unsqueeze(-1) * state.conj().unsqueeze(-3), 3)
    db = over_batch(u.unsqueeze(-1).to(state.real.dtype) * whole, 2)
    return d_state, du.to(u.dtype), over_batch(state.conj() * whole, 2), dp, dq, db, dc, dd
