"""Cauchy products by the CUDA kernels (csrc/cauchy/cuda.cu), which are called as the C++ kernels are."""

from __future__ import annotations

from ... import native
from ..dispatch import implement
from . import cpu

implement("cauchy", "cuda", needs=native.needs("cuda"))(cpu.cauchy)
implement("cauchy_transpose", "cuda", needs=native.needs("cuda"))(cpu.cauchy_transpose)
