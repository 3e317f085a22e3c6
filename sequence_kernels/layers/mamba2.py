"""The Mamba-2 layer: a short convolution, a recurrence with one decay a head, and a gated norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..arguments import values
from ..arguments.values import checked
from ..awaited import Awaited
from ..ops.padding import inside
from ..stepping.recurrences import Selection, Selective
from ..stepping.stages import (
    Kept,
    Pointwise,
    RootMeanSquare,
    Stage,
    holds,
    is_plain,
)
from .convolution import CausalConv
from .pointwise import pointwise
from .selective import State, _SelectiveLayer, bias_of_steps, is_step, wide


class GatedRMSNorm(nn.Module):
    """``rms_norm(y silu(z)) weight``, or ``rms_norm(y) weight silu(z)``, the norm over groups of channels.

    Computed in float32 (float64 of float64), and rounded once. ``z`` None: no gate.
    """

    @checked
    def __init__(
        self, width: int, groups: int = 1, norm_before_gate: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.groups, self.norm_before_gate, self.eps = groups, norm_before_gate, eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor | None = None) -> Tensor:
        return ops.gated_rms_norm(
            y, self.weight, z, groups=self.groups, gate_first=not self.norm_before_gate, eps=self.eps
        )


class Mamba2(_SelectiveLayer):
    """Mamba-2's mixer (Dao and Gu, "Transformers are SSMs", 2024, section 7), with the parameters of
    ``mamba_ssm.Mamba2``.

    ``in_proj(x)`` has, next to each other, z0 and x0 (of an MLP, if d_ssm < d_inner), z, x, B, C and dt. x, B and C go
    through the convolution and silu; head h of P channels has the state ``S_t = exp(dt_t A_h) S_{t-1} + dt_t x_t B_t'``
    and the output ``S_t C_t + D x_t``; then comes the gated norm, and ``out_proj`` of all behind ``silu(z0) x0``.

    Args:
        d_model: width of input and output.
        d_state: N, entries of B and C.
        d_conv: elements that the convolution sees.
        conv_init: its weights start uniform within +- this; None as torch's.
        expand: inner channels, d_inner, in units of d_model.
        headdim: P, channels of a head.
        d_ssm: channels of the recurrence; None is all of d_inner.
        ngroups: groups of heads that share B and C.
        A_init_range: -A is uniform in it at the start.
        D_has_hdim: one D a channel instead of one a head.
        rmsnorm, norm_before_gate: whether there is a norm, and whether it comes before the gate.
        norm_groups: groups of channels that the norm is of; None is ``ngroups``, 1 as Bamba has it.
        dt_min, dt_max, dt_init_floor: as in ``S6``.
        dt_limit: least and largest time step.
        bias, conv_bias: whether both linear maps, and the convolution, have one.
        dropout, tie_dropout, transposed: as in ``S4``.

    ``in_proj``, ``conv1d``, ``dt_bias`` (heads), ``A_log`` (heads), ``D``, ``norm``, ``out_proj``. The state is a tuple
    of the last inputs of the convolution, ``(*batch_shape, d_ssm + 2 ngroups N, d_conv - 1)``, and S, ``(*batch_shape,
    heads, P, N)``.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: float = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: Sequence[float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Sequence[float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        norm_groups: int | None = None,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, tie_dropout, transposed)
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm > self.d_inner:
            raise ValueError(f"d_ssm must be at most expand * d_model = {self.d_inner}, got {self.d_ssm}")
        if self.d_ssm < 1 or self.d_ssm % headdim:
            raise ValueError(
                f"headdim must divide the {self.d_ssm} channels of the recurrence, got headdim={headdim}"
            )
        self.heads = self.d_ssm // headdim
        if self.heads % ngroups:
            raise ValueError(f"ngroups must divide the {self.heads} heads, got ngroups={ngroups}")
        norm_groups = ngroups if norm_groups is None else norm_groups
        if self.d_ssm % norm_groups:
            raise ValueError(
                f"norm_groups must divide the {self.d_ssm} channels of the recurrence, got {norm_groups}"
            )
        least, most = A_init_range
        if not 0 < least <= most:
            raise ValueError(
                f"A_init_range must be two numbers above 0 in ascending order, got {A_init_range}"
            )
        low, high = dt_limit
        if not 0 <= low <= high:
            raise ValueError(f"dt_limit must be two numbers from 0 on in ascending order, got {dt_limit}")
        self.headdim, self.ngroups, self.size, self.dt_limit = headdim, ngroups, d_state, (low, high)
        self.mixed = self.d_ssm + 2 * ngroups * d_state  # channels of the convolution
        aside = self.d_inner - self.d_ssm
        self.in_proj = nn.Linear(d_model, 2 * aside + self.d_ssm + self.mixed + self.heads, bias=bias)
        self.conv1d = CausalConv(self.mixed, d_conv, bias=conv_bias, activation="silu")
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = bias_of_steps(self.heads, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(least, most).log())
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.heads))
        self.norm = GatedRMSNorm(self.d_ssm, norm_groups, norm_before_gate) if rmsnorm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        for name in ("dt_bias", "A_log", "D"):
            self.set_options(name, {"weight_decay": 0.0})

    @property
    def _state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.mixed, self.conv1d.kernel_size - 1), (self.heads, self.headdim, self.size)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        values.unit_rate(self, rate)
        aside, inner, shared = self.d_inner - self.d_ssm, self.d_ssm, self.ngroups * self.size
        z, mixed = 2 * aside, 2 * aside + inner
        convolution = self.conv1d.stages_within(mixed) if holds(self.conv1d, "stages") else None
        if convolution is None:
            return super().stages()
        skip = wide(self.D)
        recurrence = Selection(
            a=-torch.exp(wide(self.A_log)),
            d=skip if len(skip) == self.heads else skip.unflatten(0, (self.heads, -1)),
            bias=wide(self.dt_bias),
            size=self.size,
            groups=self.ngroups,
            softplus=True,
            limits=self.dt_limit,
            u=mixed,
            delta=mixed + self.mixed,
            b=mixed + inner,
            c=mixed + inner + shared,
            z=z if self.norm is None else None,
            width=self.headdim,
        )
        stages: list[Stage] = [*pointwise(self.in_proj), *convolution, Selective(recurrence)]
        norm = self.norm
        if norm is not None and not aside and type(norm) is GatedRMSNorm and is_plain(norm):
            first = not norm.norm_before_gate
            stages += [
                RootMeanSquare(norm.weight, norm.eps, norm.groups, mixed, z, first),
                Kept(mixed, inner),
            ]
        elif norm is None and not aside:
            stages.append(Kept(mixed, inner))
        else:

            def outputs(x: Tensor) -> Tensor:
                z0, x0, gate, y, _ = x.split([aside, aside, inner, inner, x.shape[-1] - mixed - inner], -1)
                return torch.cat((F.silu(z0) * x0, y if norm is None else norm(y, gate)), -1)

            stages.append(Pointwise(outputs))
        return [*stages, *pointwise(self.out_proj), *pointwise(self.dropout)]

    def _sequence(
        self, x: Tensor, state: State | None, lengths: Tensor | None, bounds: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        window, before = (None, None) if state is None else state
        aside = self.d_inner - self.d_ssm
        z0, x0, z, mixed, dt = self.in_proj(x).split([aside, aside, self.d_ssm, self.mixed, self.heads], -1)
        mixed, window = self.conv1d(mixed, window, lengths=lengths, cu_seqlens=bounds)
        real = None if lengths is None else inside(lengths, mixed.shape[1])
        y, after = recurrence(self, mixed, dt, self.d_ssm, self.ngroups, self.dt_limit, before, real, bounds)
        y = y * F.silu(z) if self.norm is None else self.norm(y, z)
        return self.out_proj(torch.cat((F.silu(z0) * x0, y), -1) if aside else y), (window, after)


def recurrence(
    part: Any,
    mixed: Tensor,
    dt: Tensor,
    channels: int,
    groups: int,
    limit: tuple[float, float],
    state: Tensor | Awaited | None,
    real: Tensor | None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of whoever has ``A_log``, ``D`` and ``dt_bias``; no time passes where nothing is real.

    ``mixed`` (B, L, channels + 2 groups N) is x, B and C; ``dt`` (B, L, heads); ``real`` booleans (B, L); ``bounds``:
    where packed sequences begin and end. Returns the outputs (B, L, channels) and the state after them.
    """
    size = (mixed.shape[-1] - channels) // (2 * groups)
    u, b, c = mixed.split([channels, groups * size, groups * size], -1)
    heads = part.A_log.shape[0]
    steps = F.softplus(wide(dt) + wide(part.dt_bias)).clamp(*limit)
    if real is not None:
        steps = torch.where(real.unsqueeze(-1), steps, 0)
    a, skip = -torch.exp(wide(part.A_log)), wide(part.D)
    skip = skip if skip.shape[0] == heads else skip.unflatten(0, (heads, channels // heads))
    u, b, c = u.unflatten(-1, (heads, -1)), b.unflatten(-1, (groups, size)), c.unflatten(-1, (groups, size))
    if isinstance(state, Awaited):
        _, end = ops.ssd(u, steps, a, b, c)
        state, behind = state.resolve(end, functools.partial(_passing, a), steps.sum(1))
        y, _ = ops.ssd(u, steps, a, b, c, skip, initial_state=state)
        return y.flatten(-2), behind
    if state is not None and bounds is None and is_step(u, state):
        u, steps, b, c = (t.squeeze(1) for t in (u, steps, b, c))
        y, after = ops.selective_step(state, u, steps, a, b, c, skip)
        return y.flatten(-2).unsqueeze(1), after
    y, after = ops.ssd(u, steps, a, b, c, skip, initial_state=state, cu_seqlens=bounds)
    return y.flatten(-2), after


def _passing(a: Tensor, time: Tensor) -> Callable[[Tensor], Tensor]:
    """What so much time, ``(B, heads)``, makes of states ``(B, heads, P, N)``."""
    decay = torch.exp(time * a)[..., None, None]
    return lambda state: state * decay
