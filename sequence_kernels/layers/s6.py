"""The S6 layer: a diagonal state-space model whose step, input and readout depend on its input."""

from __future__ import annotations

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
from ..stepping.stages import Kept, Linear, RootMeanSquare, Stage, is_plain, is_tensor
from .pointwise import pointwise
from .selective import State, _SelectiveLayer, bias_of_steps, is_step, wide


class _SelectiveModel(_SelectiveLayer):
    """The parameters of S6 over ``d_inner`` channels, with the names and the start of those of mamba_ssm's Mamba."""

    def _make(
        self,
        d_inner: int,
        d_state: int,
        dt_rank: int,
        dt_min: float,
        dt_max: float,
        dt_init: str,
        dt_scale: float,
        dt_init_floor: float,
    ) -> None:
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init must be 'random' or 'constant', got {dt_init!r}")
        self.dt_rank, self.size = dt_rank, d_state
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        bound = dt_rank**-0.5 * dt_scale
        with torch.no_grad():
            if dt_init == "constant":
                self.dt_proj.weight.fill_(bound)
            else:
                self.dt_proj.weight.uniform_(-bound, bound)
        self.dt_proj.bias = bias_of_steps(d_inner, dt_min, dt_max, dt_init_floor)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        for name in ("A_log", "D"):
            self.set_options(name, {"weight_decay": 0.0})

    @property
    def _norms(self) -> tuple[nn.RMSNorm, ...] | None:
        """Those of what dt is made from, of B and of C; None if there are none."""
        return None

    def _recurrence(
        self,
        u: Tensor,
        z: Tensor | None,
        state: Tensor | None,
        lengths: Tensor | None,
        bounds: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """``(B, L, d_inner)`` to the same, gated by z, and the state after each row's length or packed sequence."""
        real = None if lengths is None else inside(lengths, u.shape[1])
        return recurrence(self, u, z, state, real, self._norms, bounds)

    def _recurrence_stages(self, z: int | None, channels: int) -> list[Stage] | None:
        """What ``_recurrence`` does to the first ``d_inner`` of ``channels``, z from there on; None if it calls others.

        The outputs are where the inputs were.
        """
        weights = self.x_proj.weight, self.dt_proj.weight
        if not (type(self.x_proj) is nn.Linear and is_plain(self.x_proj) and all(map(is_tensor, weights))):
            return None
        rank, size, low = self.dt_rank, self.size, channels
        norms: list[Stage] = []
        for norm, begin in zip(self._norms or (), (low, low + rank, low + rank + size), strict=False):
            if type(norm) is not nn.RMSNorm or norm.eps is None or not is_plain(norm):
                return None
            gamma = weights[0].new_ones(norm.normalized_shape) if norm.weight is None else norm.weight
            norms.append(RootMeanSquare(gamma, norm.eps, begin=begin))
        return [
            Linear(self.x_proj.weight, self.x_proj.bias, 0, behind=True),
            *norms,
            Linear(self.dt_proj.weight, None, low, behind=True),
            Selective(
                Selection(
                    a=-torch.exp(wide(self.A_log)),
                    d=wide(self.D),
                    bias=wide(self.dt_proj.bias),
                    size=size,
                    groups=1,
                    softplus=True,
                    limits=(-math.inf, math.inf),
                    u=0,
                    delta=low + rank + 2 * size,
                    b=low + rank,
                    c=low + rank + size,
                    z=z,
                )
            ),
            Kept(0, len(self.A_log)),
        ]


def recurrence(
    part: Any,
    u: Tensor,
    z: Tensor | None,
    state: Tensor | Awaited | None,
    real: Tensor | None,
    norms: Sequence[Callable[[Tensor], Tensor]] | None = None,
    bounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of whoever has ``x_proj``, ``dt_proj``, ``A_log`` and ``D``; no time passes where nothing is real.

    ``(B, L, d_inner)`` and booleans ``(B, L)`` to the outputs, gated by z, and the state after them. ``norms``: of what
    dt is made from, of B and of C. ``bounds``: where packed sequences begin and end.
    """
    rank, size = part.dt_proj.weight.shape[1], part.A_log.shape[1]
    low, b, c = part.x_proj(u).split([rank, size, size], -1)
    if norms is not None:
        low, b, c = (norm(t) for norm, t in zip(norms, (low, b, c), strict=True))
    delta = F.linear(low, part.dt_proj.weight)
    if real is not None:
        delta = torch.where(real.unsqueeze(-1), delta, -math.inf)
    a, skip, bias = -torch.exp(wide(part.A_log)), wide(part.D), wide(part.dt_proj.bias)
    if isinstance(state, Awaited):
        state, behind = _handed_on(state, u, delta, a, b, c, bias)
        y, _ = ops.selective_scan(
            u, delta, a, b, c, skip, z, bias, delta_softplus=True, initial_state=state, channels_last=True
        )
        return y, behind
    if state is not None and bounds is None and is_step(u, state):
        u, delta, b, c = (t.squeeze(1) for t in (u, delta, b, c))
        gate = None if z is None else z.squeeze(1)
        y, after = ops.selective_step(state, u, delta, a, b, c, skip, gate, bias, delta_softplus=True)
        return y.unsqueeze(1), after
    tensors = u, delta, a, b, c, skip, z, bias
    return ops.selective_scan(
        *tensors, delta_softplus=True, initial_state=state, channels_last=True, cu_seqlens=bounds
    )


def _handed_on(
    state: Awaited, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The state before this part, and behind the last; what passes are the time steps' sums."""
    _, end = ops.selective_scan(u, delta, a, b, c, None, None, bias, delta_softplus=True, channels_last=True)

    def transition(time: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda h: h * torch.exp(time.unsqueeze(-1) * a)

    return state.resolve(end, transition, F.softplus(wide(delta) + bias).sum(1))


class S6(_SelectiveModel):
    """The recurrence of Mamba alone (Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces",
    2023, algorithm 2): no convolution, no gate, no linear maps around it.

    ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t``, ``y_t = C_t h_t + D u_t`` in each channel, with
    ``dt_t = softplus(dt_proj(x_proj(u_t)[:R]))`` and B_t, C_t the rest of ``x_proj(u_t)``.

    Args:
        d_model: number of channels.
        d_state: N, entries in the state of each.
        dt_rank: R, width from which the time steps are made; "auto" is d_model / 16, rounded up.
        dt_min, dt_max, dt_init_floor: time steps at the start, log-uniform between the first two, none below the third.
        dt_init, dt_scale: ``dt_proj.weight`` at the start, "random" or "constant", times the scale.
        dropout, tie_dropout, transposed: as in ``S4``.

    ``A_log`` (d_model, N), ``D`` (d_model), ``x_proj``, ``dt_proj``. The state is ``(h,)``, ``(*batch_shape, d_model,
    N)``.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, tie_dropout, transposed)
        rank = rank_of_steps(dt_rank, d_model)
        self._make(d_model, d_state, rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

    @property
    def _state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.d_model, self.size),)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        values.unit_rate(self, rate)
        inside = self._recurrence_stages(None, self.d_model)
        return super().stages() if inside is None else [*inside, *pointwise(self.dropout)]

    def _sequence(
        self, x: Tensor, state: State | None, lengths: Tensor | None, bounds: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        y, after = self._recurrence(x, None, None if state is None else state[-1], lengths, bounds)
        return y, (after,)


def rank_of_steps(dt_rank: int | str, d_model: int) -> int:
    """``dt_rank`` as a number; "auto" is d_model / 16, rounded up."""
    if dt_rank == "auto":
        return math.ceil(d_model / 16)
    if isinstance(dt_rank, bool) or not isinstance(dt_rank, int) or dt_rank < 1:
        raise ValueError(f"dt_rank must be 'auto' or an int of at least 1, got {dt_rank!r}")
    return dt_rank
