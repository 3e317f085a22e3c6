"""Discretisations of diagonal systems ``x' = a x + b u`` with step ``dt``.

Each gives the exponents ``log(A_bar)`` and the input weights ``B_bar`` of ``x_t = A_bar x_{t-1} + B_bar u_t``; the
exponents, not ``A_bar``, because ``A_bar^l`` is wanted for large l. All are computed in complex128 (the arrays are
small, and ``A_bar`` is close to 1) and differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

DISCRETIZATIONS = ("bilinear", "zoh", "dss")


def discretize(
    a: Tensor, b: Tensor, dt: Tensor, method: str, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Exponents and input weights of the discrete system, both complex128 in the broadcast shape of the arguments.

    Args:
        a: eigenvalues ``(H, N)``, in 1 / unit of time; complex.
        b: input weights ``(H, N)``, complex.
        dt: step ``(H,)``, in units of time; real and positive.
        method: "zoh" (input constant during a step), "bilinear" (Tustin) or "dss" (Gupta et al., 2022: softmax over
            ``length`` positions in the place of zoh's ``1 / a``, real part in the place of twice the real part).
        length: the positions that dss normalises over; needed there, and only there.
    """
    if method not in DISCRETIZATIONS:
        raise ValueError(f"disc must be one of {DISCRETIZATIONS}, got {method!r}")
    if method == "dss" and length is None:
        raise ValueError("disc='dss' normalises over a fixed length: pass l_max")
    a, b = a.to(torch.complex128), b.to(torch.complex128)
    step = dt.to(torch.float64).unsqueeze(-1)
    x = a * step
    if method == "bilinear":
        half = x / 2
        below = 1 - half
        # A_bar is 0 at x = -2, where its logarithm has no gradient: then it is 1e-30, else the sum does not change.
        return torch.log((1 + half + 1e-30) / below), b * step / below
    if method == "zoh":
        return x, b * step * _expm1_over(x)
    assert length is not None
    return x, b * _softmax_weights(a, x, length)


def _expm1_over(x: Tensor) -> Tensor:
    """``(e^x - 1) / x`` for complex x, continuous at 0, where the quotient loses its digits: its series there."""
    small = x.abs() < 1e-2
    away = x.masked_fill(small, 1)
    square = x * x  # few operations: the arrays are so small that what counts is how many there are
    third = (x * (1 / 24) + 1 / 6).addcmul(square, x * (1 / 720) + 1 / 120)
    series = (x * (1 / 2) + 1).addcmul(square, third)
    return torch.where(small, series, torch.expm1(away) / away)


def _softmax_weights(a: Tensor, x: Tensor, length: int) -> Tensor:
    """Half of ``(e^x - 1) conj(D) / (|D|^2 + 1e-7)``, ``D = (e^{x L} - 1) a``; growing modes are shifted to the end.

    Half, because a system's output is twice the real part and that of DSS is the real part.
    """
    growing = x.real > 0
    decaying = torch.where(growing, -x, x)
    denominator = (torch.exp(decaying * length) - 1) * a
    reciprocal = denominator.conj() / (denominator.abs().square() + 1e-7)
    shift = torch.exp(torch.where(growing, -x * (length - 1), 0))
    return (torch.exp(decaying) - 1) * reciprocal * shift / 2
