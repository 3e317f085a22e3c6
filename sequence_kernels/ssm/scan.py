"""The states of a diagonal recurrence whose every state has an input of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import checks
from .convolve import convolve
from .diagonal import DiagonalSystem


def diagonal_scan(
    exponents: Tensor,
    real: Tensor,
    imag: Tensor,
    initial: Tensor | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x_t = exp(exponents) x_{t-1} + (real_t + i imag_t)``, elementwise, by ``convolve``.

    Args:
        exponents: ``(N,)``, complex128.
        real, imag: the inputs ``(B, N, L)``, in the dtypes of ``ops.ssm_conv``.
        initial: x before the first element ``(B, N)``, complex; None for zero.
        lengths: as in ``convolve``.

    Returns:
        The real and the imaginary parts of all x ``(B, N, L)``, and the last x; None if no ``initial`` was given.

    The recurrence is linear: real and imaginary inputs go through it one beside the other, as two halves of a batch,
    and their states add up to x. Its two channels read the real and the imaginary part of a state.
    """
    b = torch.ones_like(exponents).unsqueeze(-1)
    dtype = checks.COMPLEX_OF.get(real.dtype, torch.complex64)
    system = DiagonalSystem(exponents.unsqueeze(-1), b, torch.stack((b / 2, -0.5j * b)).to(dtype))
    start = None
    if initial is not None:
        start = torch.cat((initial, torch.zeros_like(initial))).to(dtype).unsqueeze(-1)
    twice = None if lengths is None else lengths.repeat(2)
    y, final = convolve(system, torch.cat((real, imag)), None, start, twice)
    (re_re, re_im), (im_re, im_im) = (half.unbind(1) for half in y.chunk(2))
    if final is None:
        return re_re - im_im, re_im + im_re, None
    by_real, by_imag = final.squeeze(-1).chunk(2)
    return re_re - im_im, re_im + im_re, by_real + 1j * by_imag
