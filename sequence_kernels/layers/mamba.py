"""The Mamba layer: a short convolution, a selective scan and a gate between two linear maps."""

from __future__ import annotations

import functools

from torch import Tensor, nn

from ..arguments import values
from ..arguments.values import checked
from ..stepping.stages import Stage, holds
from .convolution import CausalConv
from .pointwise import pointwise
from .s6 import _SelectiveModel, rank_of_steps
from .selective import State


class Mamba(_SelectiveModel):
    """Mamba's mixer (Gu and Dao, 2023, figure 3), with the parameters of ``mamba_ssm.Mamba``.

    ``out_proj(S6(silu(conv1d(u))) silu(z))`` with ``u, z = in_proj(x)``.

    Args:
        d_model: width of input and output.
        d_state: N, entries in the state of each inner channel.
        d_conv: elements that the convolution sees.
        expand: inner channels, d_inner, in units of d_model.
        dt_rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor: as in ``S6``.
        conv_bias, bias: whether the convolution, and both linear maps, have one.
        inner_norm: root-mean-square norms of what dt is made from, of B and of C: "learned" as Jamba has them, "plain",
            without weights, as Falcon Mamba; None as Mamba.
        inner_norm_eps: of these.
        dropout, tie_dropout, transposed: as in ``S4``.

    ``in_proj``, ``conv1d``, ``x_proj``, ``dt_proj``, ``A_log``, ``D``, ``out_proj``; ``dt_layernorm``, ``b_layernorm``,
    ``c_layernorm`` with ``inner_norm``. The state is a tuple of the last
    inputs of the convolution, ``(*batch_shape, d_inner, d_conv - 1)``, and h, ``(*batch_shape, d_inner, N)``.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        inner_norm: str | None = None,
        inner_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__(d_model, dropout, tie_dropout, transposed)
        self.d_inner = int(expand * d_model)
        if self.d_inner < 1:
            raise ValueError(
                f"expand must give at least one inner channel, got {expand} with d_model={d_model}"
            )
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = CausalConv(self.d_inner, d_conv, bias=conv_bias, activation="silu")
        rank = rank_of_steps(dt_rank, d_model)
        self._make(self.d_inner, d_state, rank, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        if inner_norm not in (None, "learned", "plain"):
            raise ValueError(f"inner_norm must be None, 'learned' or 'plain', got {inner_norm!r}")
        self.inner_norm = inner_norm
        if inner_norm is not None:
            norm = functools.partial(
                nn.RMSNorm, eps=inner_norm_eps, elementwise_affine=inner_norm == "learned"
            )
            self.dt_layernorm, self.b_layernorm, self.c_layernorm = norm(rank), norm(d_state), norm(d_state)

    @property
    def _norms(self) -> tuple[nn.RMSNorm, ...] | None:
        return None if self.inner_norm is None else (self.dt_layernorm, self.b_layernorm, self.c_layernorm)

    @property
    def _state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.d_inner, self.conv1d.kernel_size - 1), (self.d_inner, self.size)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        values.unit_rate(self, rate)
        convolution = self.conv1d.stages_within(0) if holds(self.conv1d, "stages") else None
        inside = self._recurrence_stages(self.d_inner, 2 * self.d_inner)
        if convolution is None or inside is None:
            return super().stages()
        around = pointwise(self.in_proj), [*pointwise(self.out_proj), *pointwise(self.dropout)]
        return [*around[0], *convolution, *inside, *around[1]]

    def _sequence(
        self, x: Tensor, state: State | None, lengths: Tensor | None, bounds: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        window, before = (None, None) if state is None else state
        u, z = self.in_proj(x).chunk(2, -1)
        u, window = self.conv1d(u, window, lengths=lengths, cu_seqlens=bounds)
        y, after = self._recurrence(u, z, before, lengths, bounds)
        return self.out_proj(y), (window, after)
