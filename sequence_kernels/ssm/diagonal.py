"""Diagonal state-space models: S4D and its kin.

Discretisations of ``x' = a x + b u`` with step ``dt`` give the exponents ``log(A_bar)`` and the input weights ``B_bar``
of ``x_t = A_bar x_{t-1} + B_bar u_t``; the exponents, not ``A_bar``, because ``A_bar^l`` is wanted for large l. All are
computed in complex128 (the arrays are small, and ``A_bar`` is close to 1) and differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..arguments.values import checked
from ..ops import checks
from ..ops.layouts import as_complex, by_head
from .parameters import SSMParameters
from .system import StepParameters

DISCRETIZATIONS = ("bilinear", "zoh", "dss")


@dataclass(frozen=True)
class DiagonalSystem:
    """``x_t = exp(log_a) x_{t-1} + b u_t``, ``y_t = 2 Re(c x_t)``, elementwise.

    ``log_a``, ``b`` (H, N) are complex128; ``c`` (C, H, N) has the dtype of the results.
    """

    dense: ClassVar[bool] = False

    log_a: Tensor
    b: Tensor
    c: Tensor

    def kernel(self, length: int) -> Tensor:
        dtype = self.c.dtype
        return ops.vandermonde((self.c * self.b).to(dtype), self.log_a.to(dtype), length)

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        none = self.log_a.new_empty(0, *self.log_a.shape)
        return torch.exp(self.log_a), none, none, self.b

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        dtype = self.c.dtype
        d = None if d is None else d.to(checks.REAL_OF[dtype])
        return StepParameters(torch.expm1(self.log_a).to(dtype), self.b.to(dtype), self.c, d)

    def channels(self, start: int, stop: int) -> DiagonalSystem:
        return DiagonalSystem(self.log_a, self.b, self.c[start:stop])


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
        dt, real, imag = self.dt(rate), self.negative(self.inv_A_real), self.A_imag
        a = by_head(torch.complex(real, imag.to(real.dtype)), self.heads)
        b = by_head(as_complex(self.B), self.heads)
        c = as_complex(self.C)
        if self.bandlimit is not None:
            c = self.within_band(c, imag)
        return DiagonalSystem(*discretize(a, b, dt, self.disc, self.l_max or length), c)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        kept = {name: value for name, value in state_dict.items() if name != prefix + "A"}
        super()._load_from_state_dict(kept, prefix, *args)


def discretize(
    a: Tensor, b: Tensor, dt: Tensor, method: str, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Exponents and input weights of the discrete system, both complex128 in the broadcast shape of the arguments.

    Args:
        a: eigenvalues ``(H, N)``, in 1 / unit of time; complex.
        b: input weights ``(H, N)``, complex.
        dt: step ``(H,)``, in units of time; real and positive.
        method: "zoh" (input constant during a step), "bilinear" (Tustin) or "dss" (Gupta et al., 2022: softmax over
            ``length`` positions instead of zoh's ``1 / a``, real part instead of twice the real part).
        length: the positions that dss normalises over; needed there, and only there.
    """
    if method not in DISCRETIZATIONS:
        raise ValueError(f"disc must be one of {DISCRETIZATIONS}, got {method!r}")
    if method == "dss" and length is None:
        raise ValueError("disc='dss' normalises over a fixed length: pass l_max")
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    step = dt.to(torch.complex128).unsqueeze(
        -1
    )  # once: a product with a real tensor or number would do it again
    log_a = a * step
    if method == "bilinear":
        half = log_a / 2
        below = 1 - half
        # A_bar is 0 at a dt = -2, where its logarithm has no gradient: then it is 1e-30, else the sum does not change.
        return torch.log((1 + half + 1e-30) / below), b * step / below
    if method == "zoh":
        return log_a, b * step * _expm1_over(log_a)
    assert length is not None
    return log_a, b * _softmax_weights(a, log_a, length)


#: 1 / (n + 1)!, complex, because torch converts a real number for each product with a complex tensor.
_SERIES = tuple(complex(1 / math.factorial(n + 1)) for n in range(6))


def _expm1_over(x: Tensor) -> Tensor:
    """``(e^x - 1) / x`` for complex x, continuous at 0, where the quotient loses its digits: its series there."""
    small = x.abs() < 1e-2
    away = x.masked_fill(small, 1)
    square = x * x  # few operations: the arrays are so small that what counts is how many there are
    third = (x * _SERIES[3] + _SERIES[2]).addcmul(square, x * _SERIES[5] + _SERIES[4])
    series = (x * _SERIES[1] + _SERIES[0]).addcmul(square, third)
    return torch.where(small, series, torch.expm1(away) / away)


def _softmax_weights(a: Tensor, log_a: Tensor, length: int) -> Tensor:
    """Half of ``(e^{log_a} - 1) conj(D) / (|D|^2 + 1e-7)``, ``D = (e^{log_a L} - 1) a``; growing modes end at 1.

    Half, because a system's output is twice the real part and that of DSS is the real part.
    """
    growing = log_a.real > 0
    decaying = torch.where(growing, -log_a, log_a)
    denominator = (torch.exp(decaying * length) - 1) * a
    reciprocal = denominator.conj() / (denominator.abs().square() + 1e-7)
    shift = torch.exp(torch.where(growing, -log_a * (length - 1), 0))
    return (torch.exp(decaying) - 1) * reciprocal * shift / 2
