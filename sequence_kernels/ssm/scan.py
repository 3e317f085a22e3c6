"""The states of a diagonal recurrence whose every state has an input of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import checks
from ..ops.layouts import as_complex
from .diagonal import DiagonalSystem, SampledDiagonalSystem
from .parameters import filled
from .uneven import convolve_unevenly

#: ``(u, state, lengths, cu_seqlens)`` to y and the next state, as ``convolve`` by a system, the states real.
Convolution = Callable[
    [Tensor, "Tensor | None", "Tensor | None", "Tensor | None"], "tuple[Tensor, Tensor | None]"
]


class Maps(NamedTuple):
    """``x_t = a x_{t-1} + B u_t``, ``y_t = C x_t + D u_t`` of complex x, as real maps of real and imaginary parts.

    a_minus_one: ``(N, 2)``, of the precision of x; b ``(2 N, H)`` and c ``(H, 2 N)``: all real parts before all
    imaginary ones; d ``(H,)``, a matrix, or None for no skip: see ``with_skip``.
    """

    a_minus_one: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None

    def step(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One element ``(..., H)``, x ``(..., N, 2)``: y and the next x; in real numbers alone."""
        re, im = x.unbind(-1)
        a_re, a_im = self.a_minus_one.unbind(-1)
        real, imag = F.linear(u, self.b).to(x.dtype).chunk(2, -1)
        re, im = re + (a_re * re - a_im * im + real), im + (a_re * im + a_im * re + imag)
        y = with_skip(F.linear(torch.cat((re, im), -1).to(u.dtype), self.c), self.d, u)
        return y, torch.stack((re, im), -1)

    def scan(self, run: Convolution, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Elements ``(B, length, H)`` by the ``diagonal_scan`` of ``run``: y and the x after them."""
        real, imag = F.linear(u, self.b).mT.chunk(2, 1)
        real, imag, final = diagonal_scan(run, real, imag, x)
        assert final is not None
        return with_skip(F.linear(torch.cat((real, imag), 1).mT, self.c), self.d, u), final


def with_skip(y: Tensor, d: Tensor | None, u: Tensor) -> Tensor:
    """y with the skip from u, which is a number for each channel, a matrix or none."""
    if d is None:
        return y
    return y + (d * u if d.dim() == 1 else F.linear(u, d))


def scan_system(exponents: Tensor, dtype: torch.dtype) -> DiagonalSystem:
    """What ``diagonal_scan`` convolves with: N heads of one state, which the two channels read the parts of.

    exponents: ``(N,)``, complex128; dtype: real, of what is computed, or half precision, which is widened.
    """
    real = dtype if dtype in checks.REAL else torch.float32
    readouts = torch.tensor(
        [[0.5, 0.0], [0.0, -0.5]], dtype=real, device=exponents.device
    )  # of Re x, of Im x
    c = as_complex(readouts).view(2, 1, 1).repeat(1, len(exponents), 1)
    return DiagonalSystem(exponents.unsqueeze(-1), filled(exponents, 1.0).unsqueeze(-1), c)


def uneven_scan(a: Tensor, dt: Tensor, rate: Tensor, dtype: torch.dtype) -> Convolution:
    """What ``diagonal_scan`` convolves with where each element is held for a time of its own.

    a, dt: poles ``(N,)``, complex128, and steps; rate: ``(B, L)``, see ``convolve_unevenly``; dtype as above.
    """
    readouts = scan_system(a, dtype).c
    system = SampledDiagonalSystem(a.unsqueeze(-1), filled(a, 1.0).unsqueeze(-1), dt, readouts, "zoh")

    def run(
        u: Tensor, state: Tensor | None, lengths: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if cu_seqlens is not None:
            raise ValueError("rate for each element cannot be given together with cu_seqlens")
        start = None if state is None else torch.view_as_complex(state).unsqueeze(-1)
        y, final = convolve_unevenly(system, u, rate.repeat(2, 1), None, start, lengths)
        return y, None if final is None else torch.view_as_real(final.squeeze(-1))

    return run


def diagonal_scan(
    convolution: Convolution,
    real: Tensor,
    imag: Tensor,
    initial: Tensor | None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x_t = exp(exponents) x_{t-1} + (real_t + i imag_t)``, elementwise.

    Args:
        convolution: with the ``scan_system`` of the exponents.
        real, imag: the inputs ``(B, N, L)``, in the dtypes of ``ops.ssm_conv``.
        initial: x before the first element, real and imaginary parts ``(B, N, 2)``; None for zero.
        lengths, cu_seqlens: as in ``convolve``.

    Returns:
        The real and the imaginary parts of all x ``(B, N, L)``, and the last x ``(B, N, 2)``; None if no ``initial``
        was given.

    The recurrence is linear: real and imaginary inputs go through it one beside the other, as two halves of a batch or
    twice as many packed sequences, and their states add up to x.
    """
    start = None
    if initial is not None:
        wide = torch.float64 if real.dtype == torch.float64 else torch.float32
        start = torch.cat((initial, torch.zeros_like(initial))).to(wide)
    if cu_seqlens is not None:
        both = torch.cat((cu_seqlens, cu_seqlens[1:] + real.shape[-1]))
        y, final = convolution(torch.cat((real, imag), -1), start, None, both)
        halves = y.chunk(2, -1)
    else:
        twice = None if lengths is None else lengths.repeat(2)
        y, final = convolution(torch.cat((real, imag)), start, twice, None)
        halves = _halves(y)
    (re_re, re_im), (im_re, im_im) = (half.unbind(1) for half in halves)
    if final is None:
        return re_re - im_im, re_im + im_re, None
    by_real, by_imag = _halves(final)
    turned = torch.stack((-by_imag[..., 1], by_imag[..., 0]), -1)
    return re_re - im_im, re_im + im_re, by_real + turned


def _halves(batch: Tensor) -> tuple[Tensor, ...]:
    """Of a batch, by no ``chunk``: exporters to ONNX take it for a sequence of unknown length."""
    return batch.unflatten(0, (2, batch.shape[0] // 2)).unbind()
