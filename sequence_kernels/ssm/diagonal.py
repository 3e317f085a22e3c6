"""Diagonal state-space models: S4D and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..arguments.values import checked
from ..ops import checks
from ..ops.sharing import by_head
from .discretize import discretize
from .parameters import SSMParameters, complex_parameter
from .system import StepParameters, skip


@dataclass(frozen=True)
class DiagonalSystem:
    """``x_t = exp(x) x_{t-1} + b u_t``, ``y_t = 2 Re(c x_t)``, elementwise.

    ``x``, ``b`` (H, N) are complex128; ``c`` (C, H, N) has the dtype of the results.
    """

    dense: ClassVar[bool] = False

    x: Tensor
    b: Tensor
    c: Tensor

    def kernel(self, length: int) -> Tensor:
        dtype = self.c.dtype
        return ops.vandermonde((self.c * self.b).to(dtype), self.x.to(dtype), length)

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        none = self.x.new_empty(0, *self.x.shape)
        return torch.exp(self.x), none, none, self.b

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        dtype = self.c.dtype
        return StepParameters(torch.expm1(self.x).to(dtype), self.b.to(dtype), self.c, skip(d, self.c))

    def channels(self, start: int, stop: int) -> DiagonalSystem:
        return DiagonalSystem(self.x, self.b, self.c[start:stop])


class DiagonalSSM(SSMParameters):
    """Parameters of H diagonal systems with C channels, named and shaped as in ESPnet's ``SSKernelDiag``.

    ``C`` (C, H, N, 2), ``log_dt`` (H), ``B`` (S, N, 2), ``inv_A_real`` (S, N), ``A_imag`` (S, N): head h uses copy
    h mod S. The real part of the eigenvalues is kept negative by ``real_type``. ESPnet's dead parameter ``A`` is
    accepted in a state dict and not kept.

    ``disc="dss"`` normalises over ``l_max`` elements, or without one over those of each call: see ``system``.
    ``bandlimit``: modes of that many half cycles a step and more are not read out.
    """

    inv_A_real: Tensor
    A_imag: Tensor

    @checked
    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        log_dt: Tensor,
        *,
        disc: str = "bilinear",
        real_type: str = "exp",
        l_max: int | None = None,
        lr: float | dict[str, float] | None = None,
        bandlimit: float | None = None,
    ) -> None:
        super().__init__(log_dt, real_type, least=1e-4, relu_offset=1e-4, bandlimit=bandlimit)
        self.disc = disc
        self.l_max = l_max
        self.causal = disc != "dss" or l_max is not None
        copies = len(log_dt) // len(b)
        self.register("C", torch.view_as_real((c * b.repeat(copies, 1)).resolve_conj()), group=None, lr=lr)
        self.register("log_dt", log_dt, group="dt", lr=lr)
        self.register("B", torch.view_as_real(b), group="B", lr=lr)
        self.register("inv_A_real", self.to_stored(a.real), group="A", lr=lr)
        self.register("A_imag", a.imag, group="A", lr=lr)
        discretize(a[:1], b[:1], log_dt[:1].exp(), disc, 1)  # an unknown disc fails here

    def system(self, rate: float = 1.0, length: int | None = None) -> DiagonalSystem:
        """The discrete system for inputs sampled at ``rate`` times the step that the model was made for.

        ``length``: what dss normalises over where there is no ``l_max``; needed there, and only there.
        """
        c, b = complex_parameter(self.C), complex_parameter(self.B)
        a = torch.complex(self.negative(self.inv_A_real), self.A_imag.to(checks.REAL_OF[c.dtype]))
        c, dt = self.within_band(c, self.A_imag), self.dt(rate)
        x, b = discretize(by_head(a, self.heads), by_head(b, self.heads), dt, self.disc, self.l_max or length)
        return DiagonalSystem(x, b, c)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        kept = {name: value for name, value in state_dict.items() if name != prefix + "A"}
        super()._load_from_state_dict(kept, prefix, *args)
