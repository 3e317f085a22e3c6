"""Complex numbers in Triton kernels, which has none: they lie in memory as pairs of reals, and are computed as two."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layouts import plain


@triton.jit
def load(pointer, at, mask):
    """Real and imaginary parts of the numbers ``at`` places, in double."""
    re = tl.load(pointer + 2 * at, mask=mask, other=0.0)
    im = tl.load(pointer + 2 * at + 1, mask=mask, other=0.0)
    return re.to(tl.float64), im.to(tl.float64)


@triton.jit
def store(pointer, at, re, im, mask):
    dtype: tl.constexpr = pointer.dtype.element_ty
    tl.store(pointer + 2 * at, re.to(dtype), mask=mask)
    tl.store(pointer + 2 * at + 1, im.to(dtype), mask=mask)


@triton.jit
def multiply(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


def reals(*tensors: Tensor) -> list[Tensor]:
    """What kernels take: contiguous, complex numbers as pairs."""
    return [torch.view_as_real(plain(t)) if t.is_complex() else plain(t) for t in tensors]
