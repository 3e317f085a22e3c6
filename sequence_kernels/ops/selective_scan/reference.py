"""The selective scan and its adjoint in plain torch.

    h_t = e_t h_{t-1} + dt_t u_t b_t,  e_t = exp(dt_t a),  y_t = w Re(sum_n c_t h_t) + d u_t,  out_t = y_t silu(z_t)

w is 1, or 2 for a complex a. With g_t the gradient of h_t and gy_t that of y_t:

    g_t = w gy_t c_t^* + e_{t+1}^* g_{t+1}  (+ that of the final state),  k_t = (e_t h_{t-1})^* g_t
    db_t = sum dt_t u_t g_t,  dc_t = w sum gy_t h_t^*,  da = sum dt_t k_t,  du_t = dt_t Re(sum_n b_t^* g_t) + d gy_t
    d(dt)_t = Re(sum_n a^* k_t + u_t b_t^* g_t)

All states are held, (B, L, D, N), and found by doubling: two steps are one of the product of their decays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement
from ..layouts import conjugated

#: Elements between the states that the forward pass keeps for the backward pass (csrc/selective_scan).
CHUNK = 64


def _scan(decay: Tensor, drive: Tensor) -> Tensor:
    """The states after each step of ``h <- decay h + drive`` from zero; time is the second axis."""
    steps = drive.shape[1]
    if steps < 2:
        return drive
    if steps % 2:
        decay, drive = (F.pad(t, (0, 0, 0, 0, 0, 1)) for t in (decay, drive))
    (e0, e1), (x0, x1) = (t.unflatten(1, (-1, 2)).unbind(2) for t in (decay, drive))
    second = _scan(e1 * e0, e1 * x0 + x1)
    first = x0 + e0 * F.pad(second[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.stack((first, second), 2).flatten(1, 2)[:, :steps]


class _Model(NamedTuple):
    """What the recurrence is made of, (B, L, D) or with a state (B, L, D, N), in the precision of a."""

    u: Tensor
    x: Tensor  # delta + bias
    free: Tensor  # dt before it is limited
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    z: Tensor | None
    decay: Tensor
    initial: Tensor  # (B, D, N)

    def states(self) -> tuple[Tensor, Tensor]:
        """Before and after each element."""
        drive = (self.dt * self.u).unsqueeze(-1) * self.b
        first = torch.cat((self.initial.unsqueeze(1), drive), 1)
        every = _scan(F.pad(self.decay, (0, 0, 0, 0, 1, 0)), first)
        return every[:, :-1], every[:, 1:]


def absent(argument: int, u: Tensor, a: Tensor) -> Tensor:
    """what stands for the gradient of an argument that was not given."""
    shapes = {6: u.shape, 8: (u.shape[0], *a.shape)}
    return u.new_zeros(shapes.get(argument, a.shape[:1]))


def _laid_out(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def _for_channels(matrix: Tensor, channels: int) -> Tensor:
    """b or c, of groups of channels, as (B, L or 1, D, N)."""
    groups = matrix.shape[2]
    return matrix.repeat_interleave(channels // groups if groups else 1, 2)


def _for_groups(gradient: Tensor, matrix: Tensor) -> Tensor:
    """The adjoint: (B, L, D, N) to the shape of b or c, whose one element may have served all."""
    if matrix.shape[1] == 1:
        gradient = gradient.sum(1, keepdim=True)
    if groups := matrix.shape[2]:
        gradient = gradient.unflatten(2, (groups, -1)).sum(3)
    return gradient.to(matrix.dtype)


def _model(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    least: float,
    most: float,
) -> _Model:
    real, channels = a.real.dtype, a.shape[0]
    x = delta.to(real)
    x = x if bias is None else x + bias
    free = F.softplus(x) if softplus else x
    dt = free.clamp(least, most)
    b, c = (_for_channels(m.to(a.dtype), channels) for m in (b, c))
    return _Model(
        u.to(real),
        x,
        free,
        dt,
        a,
        b,
        c,
        None if z is None else z.to(real),
        torch.exp(dt.unsqueeze(-1) * a),
        a.new_zeros(len(u), *a.shape) if initial is None else initial,
    )


def _real(t: Tensor) -> Tensor:
    return t.real if t.is_complex() else t


def _weight(a: Tensor) -> int:
    return 2 if a.is_complex() else 1


def _output(model: _Model, after: Tensor, d: Tensor | None) -> Tensor:
    y = _weight(model.a) * _real((after * model.c).sum(-1))
    return y if d is None else y + d * model.u


@implement("selective_scan", "torch")
def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    model = _model(u, delta, a, b, c, z, bias, initial, *numbers)
    before, after = model.states()
    y = _output(model, after, d)
    if model.z is not None:
        y = y * F.silu(model.z)
    kept = before[:, ::CHUNK].transpose(2, 3)
    if a.is_complex():
        kept = torch.view_as_real(kept).movedim(-1, 3).flatten(2, 3)
    final = torch.cat((model.initial.unsqueeze(1), after[:, -1:]), 1)[:, -1]
    return y.to(u.dtype), _laid_out(final), _laid_out(kept.flatten(1, 2))


@implement("selective_scan_backward", "torch")
def selective_scan_backward(
    g: Tensor,
    g_final: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    states: Tensor,
    *numbers: Any,
) -> tuple[Tensor, ...]:
    softplus, least, most = numbers
    model = _model(u, delta, a, b, c, z, bias, initial, *numbers)
    before, after = model.states()
    gy = g.to(a.real.dtype)
    dz = absent(6, u, a)
    if z is not None and model.z is not None:
        gate = torch.sigmoid(model.z)
        slope = gate * (1 + model.z * (1 - gate))
        dz = (gy * _output(model, after, d) * slope).to(z.dtype)
        gy = gy * model.z * gate

    # Backwards in time, from the gradient of the final state; the second step passes it on as it is.
    decay, final = conjugated(model.decay), g_final.unsqueeze(1)
    read = _weight(a) * gy.unsqueeze(-1) * conjugated(model.c)
    one = torch.ones_like(final)
    decays = torch.cat((one, one, decay.flip(1)[:, :-1]), 1)[:, : read.shape[1] + 1]
    gradients = _scan(decays, torch.cat((final, read.flip(1)), 1))[:, 1:].flip(1)
    passed = decay * gradients
    slopes = conjugated(before) * passed

    db = (model.dt * model.u).unsqueeze(-1) * gradients
    dc = _weight(a) * gy.unsqueeze(-1) * conjugated(after)
    dot = _real((conjugated(model.b) * gradients).sum(-1))
    dx = _real((conjugated(a) * slopes).sum(-1)) + model.u * dot
    dx = torch.where((model.free < least) | (model.free > most), 0, dx)
    if softplus:
        dx = torch.where(model.x > 20, dx, dx * torch.sigmoid(model.x))
    du = model.dt * dot if d is None else model.dt * dot + d * gy
    return (
        du.to(u.dtype),
        dx.to(delta.dtype),
        (model.dt.unsqueeze(-1) * slopes).sum((0, 1)),
        _for_groups(db, b),
        _for_groups(dc, c),
        absent(5, u, a) if d is None else (gy * model.u).sum((0, 1)),
        dz,
        absent(7, u, a) if bias is None else dx.sum((0, 1)),
        absent(8, u, a) if initial is None else _laid_out(torch.cat((final, passed.flip(1)), 1)[:, -1]),
    )
