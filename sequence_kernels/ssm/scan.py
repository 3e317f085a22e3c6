"""The states of a diagonal recurrence whose every state has an input of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import checks
from .diagonal import DiagonalSystem, SampledDiagonalSystem
from .uneven import convolve_unevenly

#: ``(u, state, lengths, cu_seqlens)`` to y and the next state, as ``convolve`` by a system, the states real.
Convolution = Callable[
    [Tensor, "Tensor | None", "Tensor | None", "Tensor | None"], "tuple[Tensor, Tensor | None]"
]


def scan_system(exponents: Tensor, dtype: torch.dtype) -> DiagonalSystem:
    """What ``diagonal_scan`` convolves with: N heads of one state, which the two channels read the parts of.

    exponents: ``(N,)``, complex128; dtype: real, of what is computed, or half precision, which is widened.
    """
    b = torch.ones_like(exponents).unsqueeze(-1)
    wide = checks.COMPLEX_OF.get(dtype, torch.complex64)
    return DiagonalSystem(exponents.unsqueeze(-1), b, torch.stack((b / 2, -0.5j * b)).to(wide))


def uneven_scan(a: Tensor, dt: Tensor, rate: Tensor, dtype: torch.dtype) -> Convolution:
    """What ``diagonal_scan`` convolves with where each element is held for a time of its own.

    a, dt: poles ``(N,)``, complex128, and steps; rate: ``(B, L)``, see ``convolve_unevenly``; dtype as above.
    """
    readouts = scan_system(a, dtype).c
    system = SampledDiagonalSystem(a.unsqueeze(-1), torch.ones_like(a).unsqueeze(-1), dt, readouts, "zoh")

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
