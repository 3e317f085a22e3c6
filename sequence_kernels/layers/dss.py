"""The DSS layer: a diagonal state space whose modes all heads share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..arguments import values
from ..arguments.values import checked
from ..ops.layouts import as_complex
from ..ssm import (
    DiagonalSystem,
    FrozenSystem,
    SampledDiagonalSystem,
    System,
    convolve,
    convolve_unevenly,
    diagonal_init,
)
from ..ssm.diagonal import softmax_weights
from ..ssm.parameters import filled, initial_log_dt, step_sizes
from ..stepping.recurrences import FrozenRecurrence, Recurrence
from ..stepping.stages import Stage
from .mixed import _MixedLayer


class DSS(_MixedLayer):
    """Diagonal state spaces (Gupta et al., "Diagonal state spaces are as effective as structured state spaces", 2022).

    ``y = K * u + D u`` in each of H heads, with the kernel of the paper, over N modes lambda that the heads share:

    - ``version="exp"``: ``K[l] = Re sum_n W_n (exp(lambda_n dt) - 1) / lambda_n exp(lambda_n dt l)``, with
      ``lambda = -exp(Lambda[..., 0]) + i Lambda[..., 1]``;
    - ``version="softmax"``: ``K[l] = Re sum_n W_n / lambda_n softmax_l(lambda_n dt l)`` over ``l_max`` positions, with
      ``lambda = Lambda[..., 0] + i Lambda[..., 1]``, whose real part may be positive. 1 / z is taken as
      ``conj(z) / (|z|^2 + 1e-7)``, as in the authors' code.

    Args:
        d_model: width H of input and output.
        d_state: number N of modes.
        version: "softmax" or "exp".
        l_max: the positions that the softmax is over, whatever the length of a call; needed there.
        dt_min, dt_max: bounds of the steps at the start.
        activation, postact, dropout, tie_dropout, transposed, output_linear: as in ``S4``.
        sep_dt_re_im: real and imaginary parts have steps of their own, ``lambda_n dt`` is then
            ``Re(lambda_n) dt[0] + i Im(lambda_n) dt[1]``, as in the authors' code by default.

    ``Lambda`` (N, 2); ``log_dt`` (H), or (H, 2) with ``sep_dt_re_im``; ``W`` (H, N, 2); ``D`` (H). The state is
    complex, ``(*batch_shape, H, N)``.
    """

    dynamics = ("Lambda", "log_dt")
    constants: FrozenSystem | None

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        version: str = "exp",
        l_max: int | None = None,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        activation: str | None = "gelu",
        postact: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
        *,
        sep_dt_re_im: bool = False,
        output_linear: bool = True,
    ) -> None:
        if version not in ("softmax", "exp"):
            raise ValueError(f"version must be 'softmax' or 'exp', got {version!r}")
        if version == "softmax" and l_max is None:
            raise ValueError(f"version='softmax' is over a fixed length: pass l_max >= 1, got {l_max}")
        mixing = (activation, postact, dropout, tie_dropout, transposed, output_linear)
        super().__init__(d_model, (d_model, d_state), *mixing)
        self.version = version
        self.l_max = l_max
        dtype = torch.get_default_dtype()
        poles = diagonal_init("diag-legs", 2 * d_state, dtype=dtype.to_complex()).a.flatten().conj()
        real = torch.log(-poles.real) if version == "exp" else poles.real
        self.Lambda = nn.Parameter(torch.stack((real, poles.imag), -1))
        log_dt = initial_log_dt(d_model, dt_min, dt_max, dtype)
        self.log_dt = nn.Parameter(log_dt.unsqueeze(-1).repeat(1, 2) if sep_dt_re_im else log_dt)
        self.W = nn.Parameter(torch.randn(d_model, d_state, 2))
        self.D = nn.Parameter(torch.randn(d_model))
        self._spare_dynamics()

    def system(self, rate: float = 1.0) -> System:
        """The discrete system for inputs sampled at ``rate`` times the step that the model was made for."""
        if self.constants is not None:
            raise self._frozen_error()
        modes, w = self.Lambda.double(), as_complex(self.W)
        real = -modes[:, 0].exp() if self.version == "exp" else modes[:, 0]
        a = torch.complex(real, modes[:, 1]).unsqueeze(0)  # one copy for all heads
        dt, c = step_sizes(self.log_dt, rate), w.unsqueeze(0)
        if self.version == "exp" and dt.dim() == 1:
            return SampledDiagonalSystem(a, filled(a, 0.5), dt, c, "zoh")  # the real part, not twice
        real_dt, imag_dt = dt.expand(2, -1) if dt.dim() == 1 else dt.unbind(-1)
        log_a = torch.complex(a.real * real_dt.unsqueeze(-1), a.imag * imag_dt.unsqueeze(-1))
        if self.version == "softmax":
            assert self.l_max is not None
            return DiagonalSystem(log_a, softmax_weights(a, log_a, self.l_max), c)
        return SampledDiagonalSystem(log_a, log_a / (2 * a), torch.ones_like(real_dt), c, "zoh")

    def _sequence(
        self,
        u: Tensor,
        state: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        rate: float,
    ) -> tuple[Tensor, Tensor | None]:
        if self.constants is None and values.by_element(rate, u.mT):
            if cu_seqlens is not None:
                raise ValueError("rate for each element cannot be given together with cu_seqlens")
            d = self.D.unsqueeze(0)
            y, next_state = convolve_unevenly(self.system(), u.mT, rate, d, state, lengths)
        elif self.constants is None:
            d = self.D.unsqueeze(0)
            y, next_state = convolve(self.system(rate), u.mT, d, state, lengths, cu_seqlens=cu_seqlens)
        else:
            self._unit_rate(rate)
            y, next_state = self.constants.convolve(u.mT, state, lengths, cu_seqlens)
        return y.squeeze(1).mT, next_state

    def _element(self, u: Tensor, state: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        if self.constants is None:
            y, next_state = ops.ssm_step(state, u, *self.system(rate).step_parameters(self.D.unsqueeze(0)))
        else:
            self._unit_rate(rate)
            y, next_state = self.constants.step(u, state)
        return y.squeeze(-2), next_state

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        if self.constants is None:
            return [Recurrence(self.system(rate), self.D.unsqueeze(0)), *self._stages_behind()]
        self._unit_rate(rate)
        return [FrozenRecurrence(self.constants), *self._stages_behind()]

    def _constants(self, rate: float) -> FrozenSystem:
        return FrozenSystem(self.system(rate), self.D.unsqueeze(0))
