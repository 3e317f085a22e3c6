"""Diagonal state-space models: S4D and its kin.

``x' = a x + b u`` with step ``dt`` becomes ``x_t = A_bar x_{t-1} + B_bar u_t``, by ``ops.diagonal_discretize`` for what
takes ``A_bar``, and by ``discretize`` for kernels, which take ``log(A_bar)``, as ``A_bar^l`` is wanted for large l. All
is computed in complex128 (the arrays are small, and ``A_bar`` is close to 1) and differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..arguments.values import checked
from ..ops import checks
from ..ops.diagonal_discretize.reference import expm1_over
from ..ops.dispatch import choose
from ..ops.layouts import as_complex, by_head
from .parameters import SSMParameters, step_sizes
from .system import StepParameters, System

DISCRETIZATIONS = ("bilinear", "zoh", "dss")

# Without the op's checks: what a system holds fits together.
_diagonal_discretize = torch.ops.sequence_kernels.diagonal_discretize.default


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

    def transition(self, length: int) -> Callable[[Tensor], Tensor]:
        power = torch.exp(self.log_a * length)
        return lambda state: state * power.to(state.dtype)

    def channels(self, start: int, stop: int) -> DiagonalSystem:
        return DiagonalSystem(self.log_a, self.b, self.c[start:stop])


@dataclass(frozen=True)
class SampledDiagonalSystem:
    """``x' = a x + b u``, ``y = 2 Re(c x)``, elementwise, with steps dt: a, b (S, N) complex, dt (H) float64.

    Head h has copy h mod S. ``method``: "zoh" or "bilinear". ``c`` (C, H, N) has the dtype of the results.
    """

    dense: ClassVar[bool] = False

    a: Tensor
    b: Tensor
    dt: Tensor
    c: Tensor
    method: str

    def kernel(self, length: int) -> Tensor:
        return self._of_exponents().kernel(length)

    def transition(self, length: int) -> Callable[[Tensor], Tensor]:
        return self._of_exponents().transition(length)

    def _of_exponents(self) -> DiagonalSystem:
        a, b = (by_head(t, len(self.dt)) for t in (self.a, self.b))
        return DiagonalSystem(*discretize(a, b, self.dt, self.method), self.c)

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        backend = choose("diagonal_discretize", None, self.a)
        a_minus_one, b = _diagonal_discretize(
            self.a, self.b, self.dt, self.method == "bilinear", True, backend
        )
        none = b.new_empty(0, *b.shape)
        return 1 + a_minus_one, none, none, b

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        dtype = self.c.dtype
        a_minus_one, b = ops.diagonal_discretize(self.a, self.b, self.dt, method=self.method, dtype=dtype)
        d = None if d is None else d.to(checks.REAL_OF[dtype])
        return StepParameters(a_minus_one, b, self.c, d)

    def channels(self, start: int, stop: int) -> SampledDiagonalSystem:
        return SampledDiagonalSystem(self.a, self.b, self.dt, self.c[start:stop], self.method)


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

    parts = ("log_dt", "C", "B", "inv_A_real", "A_imag")

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

    def system(self, rate: float = 1.0, length: int | None = None) -> System:
        """The discrete system for inputs sampled at ``rate`` times the step that the model was made for.

        ``length``: what dss normalises over where there is no ``l_max``; needed there, and only there.
        """
        dt, real, imag = step_sizes(self.log_dt, rate), self.negative(self.inv_A_real), self.A_imag
        a, b, c = torch.complex(real, imag.to(real.dtype)), as_complex(self.B), as_complex(self.C)
        if self.bandlimit is not None:
            c = self.within_band(c, imag)
        if self.disc == "dss":
            a, b = by_head(a, self.heads), by_head(b, self.heads)
            return DiagonalSystem(*discretize(a, b, dt, "dss", self.l_max or length), c)
        if a.dtype != b.dtype:
            a, b = checks.promoted(a, b)
        return SampledDiagonalSystem(a, b, dt, c, self.disc)

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
        return log_a, b * step * expm1_over(log_a)
    assert length is not None
    return log_a, b * softmax_weights(a, log_a, length)


def softmax_weights(a: Tensor, log_a: Tensor, length: int) -> Tensor:
    """Half of ``(e^{log_a} - 1) conj(D) / (|D|^2 + 1e-7)``, ``D = (e^{log_a L} - 1) a``; growing modes end at 1.

    Half, because a system's output is twice the real part and that of DSS is the real part.
    """
    growing = log_a.real > 0
    decaying = torch.where(growing, -log_a, log_a)
    denominator = (torch.exp(decaying * length) - 1) * a
    reciprocal = denominator.conj() / (denominator.abs().square() + 1e-7)
    shift = torch.exp(torch.where(growing, -log_a * (length - 1), 0))
    return (torch.exp(decaying) - 1) * reciprocal * shift / 2
