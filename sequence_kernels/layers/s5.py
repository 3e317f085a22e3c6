"""The S5 layer: one diagonal state-space model with all channels in and out."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import ops
from ..arguments.values import checked
from ..ssm import diagonal_init
from ..ssm.parameters import filled, initial_log_dt, step_sizes
from ..stepping.stages import Stage
from .mixed import _DiagonalLayer


class S5(_DiagonalLayer):
    """Simplified state-space layer (Smith et al., "Simplified state space layers for sequence modeling", 2023).

    ``x' = Lambda x + B u``, ``y = 2 Re(C x) + D u`` with a diagonal Lambda over N / 2 conjugate pairs and, as in the
    paper, a step for each of them; discretised by zero-order hold: ``Lambda_bar = exp(Lambda dt)``,
    ``B_bar = Lambda^-1 (Lambda_bar - 1) B``. Lambda starts at the poles of HiPPO-N in each of ``blocks`` equal parts.

    Args:
        d_model: width H of input and output.
        d_state: size N of the state, conjugates included; even.
        blocks: parts that the state starts as; they divide N / 2.
        dt_min, dt_max: bounds of the steps at the start.
        activation, postact, dropout, tie_dropout, transposed, output_linear: as in ``S4``.
        d_output: width O of the output, by default H.
        skip: "diagonal", a number for each channel; "full", a matrix; or None.
        disc: "zoh", or "euler": ``B_bar = dt B``.
        real: B and C are real.

    ``Lambda_log_decay`` (N / 2), the logarithm of -Re Lambda; ``Lambda_imag`` (N / 2); ``log_dt`` (N / 2);
    ``B`` (N / 2, H, 2); ``C`` (O, N / 2, 2), or without the 2 if ``real``; ``D`` (H), or (O, H) if full. The state is
    complex, ``(*batch_shape, N / 2)``.
    """

    scale = 2.0
    dynamics = ("Lambda_log_decay", "Lambda_imag", "log_dt", "B")

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        blocks: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        activation: str | None = "gelu",
        postact: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
        *,
        d_output: int | None = None,
        skip: str | None = "diagonal",
        disc: str = "zoh",
        real: bool = False,
        output_linear: bool = True,
    ) -> None:
        if disc not in ("zoh", "euler"):
            raise ValueError(f"disc must be 'zoh' or 'euler', got {disc!r}")
        n = d_state // 2
        if d_state % 2:
            raise ValueError(f"d_state must be even: conjugate pairs; got {d_state}")
        if n % blocks:
            raise ValueError(f"blocks must divide d_state / 2 = {n}, got {blocks}")
        mixing = (activation, postact, dropout, tie_dropout, transposed, output_linear)
        super().__init__(d_model, (n,), *mixing, d_output)
        self.disc = disc
        dtype = torch.get_default_dtype()
        poles = (
            diagonal_init("diag-legs", d_state // blocks, dtype=dtype.to_complex()).a.flatten().repeat(blocks)
        )
        self.Lambda_log_decay = nn.Parameter(torch.log(-poles.real))
        self.Lambda_imag = nn.Parameter(poles.imag.clone())
        self.log_dt = nn.Parameter(initial_log_dt(n, dt_min, dt_max, dtype))
        pair, parts = ((), 1) if real else ((2,), 2)
        self.B = nn.Parameter(torch.randn(n, d_model, *pair) / math.sqrt(parts * d_model))
        self.C = nn.Parameter(torch.randn(self.d_output, n, *pair) * math.sqrt(2 / parts / n))
        self.D = self._skip(skip)
        self._spare_dynamics()

    def _poles(self) -> Tensor:
        return torch.complex(-self.Lambda_log_decay.double().exp(), self.Lambda_imag.double())

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.disc != "zoh":
            raise ValueError(f"rate for each element needs disc='zoh', this layer has {self.disc!r}")
        a = self._poles()
        return a, step_sizes(self.log_dt, 1.0), filled(a, 1.0)

    def _discrete(self, rate: float) -> tuple[Tensor, Tensor]:
        a, dt = self._poles(), step_sizes(self.log_dt, rate)
        if self.disc == "euler":
            return a * dt, dt.to(a.dtype)
        _, factors = ops.diagonal_discretize(a.unsqueeze(-1), filled(a, 1.0).unsqueeze(-1), dt)
        return a * dt, factors.squeeze(-1)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        return self._all_stages(rate)
