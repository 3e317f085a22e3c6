"""Vandermonde products by the CUDA kernels (csrc/vandermonde/cuda.cu), which are called as the C++ kernels are."""

from __future__ import annotations

from ..dispatch import implement
from . import cpu

implement("vandermonde", "cuda")(cpu.vandermonde)
implement("vandermonde_transpose", "cuda")(cpu.vandermonde_transpose)
