"""The convolution by L taps and its adjoint in plain torch.

With the window ``w_t = (u_{t-L+1}, .., u_t)`` of zeros and inputs, y_t is its product with the taps in reverse order;
so is the gradient of u, of that of y, both in reverse order. The taps are those of ``ops.ssm_chunk``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement
from ..layouts import conjugated
from ..ssm_chunk.krylov import krylov, krylov_backward


def _windows(x: Tensor) -> Tensor:
    """(.., L) to (.., L, L)."""
    length = x.shape[-1]
    return F.pad(x, (length - 1, 0)).unfold(-1, length, 1)


def _states(a: Tensor, p: Tensor, q: Tensor, b: Tensor, length: int) -> Tensor:
    """``A^l b``, (H, L, N)."""
    return krylov(b.unsqueeze(0), a, p, q, length).squeeze(0)


def _reversed_taps(states: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(C, H, L), the skip in the first tap."""
    taps = 2 * torch.einsum("hln,chn->chl", states, c.to(states.dtype)).real
    taps = taps.to(c.real.dtype)
    return torch.cat((taps[..., :1] + d.unsqueeze(-1), taps[..., 1:]), -1).flip(-1)


@implement("ssm_direct", "torch")
def ssm_direct(u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    if u.shape[-1] == 0:
        return u.new_empty((u.shape[0], c.shape[0], *u.shape[1:]))
    taps = _reversed_taps(_states(a, p, q, b, u.shape[-1]), c, d)
    return torch.einsum("bhti,chi->bcht", _windows(u.to(taps.dtype)), taps).to(u.dtype).contiguous()


@implement("ssm_direct_backward", "torch")
def ssm_direct_backward(
    g: Tensor, u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if u.shape[-1] == 0:
        du, da, dp, dq, db, dc, dd = (t.new_zeros(t.shape) for t in (u, a, p, q, b, c, d))
        return du, da, dp, dq, db, dc, dd
    states = _states(a, p, q, b, u.shape[-1])
    taps = _reversed_taps(states, c, d)
    wide = g.to(taps.dtype)
    du = torch.einsum("bchti,chi->bht", _windows(wide.flip(-1)), taps).flip(-1).to(u.dtype).contiguous()
    d_taps = torch.einsum("bcht,bhti->chi", wide, _windows(u.to(taps.dtype))).flip(-1)
    g_taps = 2 * d_taps.to(torch.float64).to(torch.complex128)
    dc = torch.einsum("chl,hln->chn", g_taps, conjugated(states))
    g_states = torch.einsum("chl,chn->hln", g_taps, conjugated(c.to(torch.complex128)))
    db, da, dp, dq = krylov_backward(g_states.unsqueeze(0), states.unsqueeze(0), a, p, q)
    return du, da, dp, dq, db.squeeze(0), dc.to(c.dtype), d_taps[..., 0]
