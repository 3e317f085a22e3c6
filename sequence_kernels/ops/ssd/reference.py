"""State-space duality and its adjoint in plain torch, by chunks of CHUNK elements.

Within a chunk, with l_t the sum of dt a up to and with t, X_s = dt_s x_s, W_ts = exp(l_t - l_s) (c_t . b_s) for s <= t,
S the state before the chunk (P, N) and e the chunk's last element:

    y_t = sum_s W_ts X_s + exp(l_t) S c_t + d x_t,   S' = exp(l_e) S + sum_s exp(l_e - l_s) X_s b_s^T

Backward, with g the gradient of y, G' that of S', and h_ts = g_t . X_s:

    dX_s = sum_t W_ts g_t + exp(l_e - l_s) G' b_s,   G = exp(l_e) G' + sum_t exp(l_t) g_t c_t^T
    dc_t = sum_s exp(l_t - l_s) h_ts b_s + exp(l_t) S^T g_t
    db_s = sum_t exp(l_t - l_s) h_ts c_t + exp(l_e - l_s) G'^T X_s

The gradient of dt_u a, of which every exp(l_t - l_s) with s < u <= t holds one, has no terms that cancel where decays
are fast:

    sum_{s<u<=t} h_ts W_ts + sum_{t>=u} exp(l_t) g_t . S c_t + sum_{s<u} exp(l_e - l_s) X_s . G' b_s + exp(l_e) <G', S>

No exponent is above 0 where none of dt a is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement

CHUNK = 64


class _Chunks(NamedTuple):
    """Everything by head and chunk: (B, M, H, ...), zeros behind the last element; M chunks of Q elements."""

    x: Tensor  # (B, M, H, Q, P)
    dt: Tensor  # (B, M, H, Q)
    b: Tensor  # (B, M, H, Q, N)
    c: Tensor
    sums: Tensor  # l (B, M, H, Q)
    decay: Tensor  # exp(l_t - l_s) for s <= t, else 0 (B, M, H, Q, Q)

    @property
    def inputs(self) -> Tensor:
        return self.x * self.dt.unsqueeze(-1)

    @property
    def whole(self) -> Tensor:
        """What a chunk leaves of the state before it: (B, M, H, 1, 1)."""
        return self.sums[..., -1, None, None].exp()

    @property
    def since_start(self) -> Tensor:
        return self.sums.exp().unsqueeze(-1)

    @property
    def until_end(self) -> Tensor:
        return self.decay[..., -1, :].unsqueeze(-1)


def _chunked(t: Tensor) -> Tensor:
    """(B, L, H, ..) to (B, M, H, Q, ..)."""
    missing = -t.shape[1] % CHUNK
    t = F.pad(t, (*(0, 0) * (t.dim() - 2), 0, missing))
    return t.unflatten(1, (t.shape[1] // CHUNK, CHUNK)).transpose(2, 3)


def _joined(t: Tensor, length: int) -> Tensor:
    return t.transpose(2, 3).flatten(1, 2)[:, :length]


def _chunks(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> _Chunks:
    heads = x.shape[2]

    def by_head(t: Tensor) -> Tensor:
        return t.repeat_interleave(heads // max(t.shape[2], 1), 2)

    x, dt, b, c = (_chunked(t.to(a.dtype)) for t in (x, dt, by_head(b), by_head(c)))
    sums = (dt * a.unsqueeze(-1)).cumsum(-1)
    before = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=a.device).tril()
    exponents = sums.unsqueeze(-1) - sums.unsqueeze(-2)
    return _Chunks(x, dt, b, c, sums, exponents.masked_fill(~before, -torch.inf).exp())


def _states(chunks: _Chunks, initial: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk (B, M, H, P, N), and the last."""
    added = (chunks.inputs * chunks.until_end).mT @ chunks.b
    states = [initial]
    for whole, more in zip(chunks.whole.unbind(1), added.unbind(1), strict=True):
        states.append(whole * states[-1] + more)
    return torch.stack(states[:-1], 1) if len(states) > 1 else added, states[-1]


def _initial(x: Tensor, a: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    batch, _, heads, width = x.shape
    return a.new_zeros(batch, heads, width, b.shape[-1]) if initial_state is None else initial_state


@implement("ssd", "torch")
def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    chunks = _chunks(x, dt, a, b, c)
    states, last = _states(chunks, _initial(x, a, b, initial_state))
    y = chunks.decay * (chunks.c @ chunks.b.mT) @ chunks.inputs + chunks.since_start * (chunks.c @ states.mT)
    y = y if d is None else y + d.unsqueeze(1) * chunks.x
    return _joined(y, x.shape[1]).to(x.dtype), last


@implement("ssd_backward", "torch")
def ssd_backward(
    g: Tensor,
    g_final: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    length, groups = x.shape[1], b.shape[2]
    chunks = _chunks(x, dt, a, b, c)
    states, _ = _states(chunks, _initial(x, a, b, initial_state))
    slopes = _chunked(g.to(a.dtype))
    inputs, decay = chunks.inputs, chunks.decay
    added = (slopes * chunks.since_start).mT @ chunks.c
    later = [g_final.to(a.dtype)]
    for whole, more in zip(reversed(chunks.whole.unbind(1)), reversed(added.unbind(1)), strict=True):
        later.append(whole * later[-1] + more)
    after = torch.stack(later[-2::-1], 1) if len(later) > 1 else added  # G' of each chunk

    products = chunks.c @ chunks.b.mT
    paired = decay * (slopes @ inputs.mT)
    kept = chunks.until_end * (chunks.b @ after.mT)
    d_inputs = (decay * products).mT @ slopes + kept
    read = chunks.since_start * (slopes @ states)
    dc = paired @ chunks.b + read
    db = paired.mT @ chunks.c + chunks.until_end * (inputs @ after)
    crossed = (products * paired).tril(-1)
    from_here = crossed.sum(-1) - crossed.sum(-2) + (chunks.c * read).sum(-1)
    until_here = F.pad((inputs * kept).sum(-1)[..., :-1], (1, 0)).cumsum(-1)
    through = chunks.whole[..., 0] * (after * states).sum((-1, -2)).unsqueeze(-1)
    d_steps = from_here.flip(-1).cumsum(-1).flip(-1) + until_here + through  # of dt a
    d_dt = (chunks.x * d_inputs).sum(-1) + a.unsqueeze(-1) * d_steps
    da = (chunks.dt * d_steps).sum((0, 1, 3))
    dx = chunks.dt.unsqueeze(-1) * d_inputs
    dx = dx if d is None else dx + d.unsqueeze(1) * slopes
    dd = (slopes * chunks.x).sum((0, 1, 3))

    def by_group(t: Tensor) -> Tensor:
        t = _joined(t, length)
        return t.unflatten(2, (groups, t.shape[2] // max(groups, 1))).sum(3)

    return (
        _joined(dx, length).to(x.dtype),
        _joined(d_dt, length).to(dt.dtype),
        da,
        by_group(db).to(b.dtype),
        by_group(dc).to(c.dtype),
        dd,
        later[-1],
    )
