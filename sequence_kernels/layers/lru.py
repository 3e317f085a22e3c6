"""The LRU layer: a linear recurrence parametrised in discrete time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..arguments import values
from ..arguments.values import checked
from ..stepping.stages import Stage
from .mixed import _DiagonalLayer


class LRU(_DiagonalLayer):
    """Linear recurrent unit (Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023).

    ``x_t = lambda x_{t-1} + gamma B u_t``, ``y_t = Re(C x_t) + D u_t`` with ``lambda = exp(-exp(nu_log) + i exp(
    theta_log))`` and ``gamma = exp(gamma_log)``, which starts at ``sqrt(1 - |lambda|^2)``.

    Args:
        d_model: width H of input and output.
        d_state: N, complex numbers in the state.
        r_min, r_max: bounds of \\|lambda\\| at the start, uniform on the ring between them.
        max_phase: bound of the phase of lambda at the start.
        activation, postact, dropout, tie_dropout, transposed, output_linear: as in ``S4``.
        d_output, skip: as in ``S5``.

    ``nu_log``, ``theta_log``, ``gamma_log`` (N); ``B`` (N, H, 2); ``C`` (O, N, 2); ``D`` (H), or (O, H) if full. The
    state is complex, ``(*batch_shape, N)``. At another ``rate`` r it is the system in continuous time that holds each
    input for r steps and is this one at r = 1: lambda becomes ``lambda^r``, and gamma
    ``gamma (lambda^r - 1) / (lambda - 1)``.
    """

    scale = 1.0
    dynamics = ("nu_log", "theta_log", "gamma_log", "B")

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        activation: str | None = "gelu",
        postact: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
        *,
        d_output: int | None = None,
        skip: str | None = "diagonal",
        output_linear: bool = True,
    ) -> None:
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got {r_min} and {r_max}")
        mixing = (activation, postact, dropout, tie_dropout, transposed, output_linear)
        super().__init__(d_model, (d_state,), *mixing, d_output)
        square = r_min**2 + (r_max**2 - r_min**2) * torch.rand(d_state).clamp(1e-4, 1 - 1e-4)
        self.nu_log = nn.Parameter(torch.log(-torch.log(square) / 2))
        self.theta_log = nn.Parameter(torch.log(max_phase * torch.rand(d_state).clamp(min=1e-4)))
        self.gamma_log = nn.Parameter(torch.log1p(-square) / 2)
        self.B = nn.Parameter(torch.randn(d_state, d_model, 2) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(self.d_output, d_state, 2) / math.sqrt(d_state))
        self.D = self._skip(skip)
        self._spare_dynamics()

    def _poles(self) -> tuple[Tensor, Tensor]:
        """log lambda, and gamma."""
        exponents = torch.complex(-self.nu_log.double().exp(), self.theta_log.double().exp())
        return exponents, self.gamma_log.double().exp().to(exponents.dtype)

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        exponents, gamma = self._poles()
        return exponents, torch.ones_like(self.nu_log.double()), gamma * exponents / torch.expm1(exponents)

    def _discrete(self, rate: float) -> tuple[Tensor, Tensor]:
        exponents, gamma = self._poles()
        if type(rate) is float and rate == 1.0:
            return exponents, gamma
        values.sampling_rate(rate)
        return exponents * rate, gamma * torch.expm1(exponents * rate) / torch.expm1(exponents)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        return self._all_stages(rate)
