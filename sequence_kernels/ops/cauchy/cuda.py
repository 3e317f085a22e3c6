"""Cauchy products by the CUDA kernels (csrc/cauchy/cuda.cu), which are called as the C++ kernels are."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import implement
from . import cpu
from .reference import both_of_pairs

implement("cauchy", "cuda")(cpu.cauchy)


@implement("cauchy_transpose", "cuda")
def cauchy_transpose(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    if conjugate:
        g, z = both_of_pairs(g, z)
    return cpu.cauchy_transpose(g, z, w, False, order)
