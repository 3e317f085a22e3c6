"""Vandermonde products by the CUDA kernels (csrc/vandermonde/cuda.cu), which are called as the C++ kernels are."""

from __future__ import annotations

import torch

from ... import native
from ..dispatch import implement
from . import cpu


def _needs(device: str, dtype: torch.dtype) -> str | None:
    return native.why_not("cuda")


implement("vandermonde", "cuda", needs=_needs)(cpu.vandermonde)
implement("vandermonde_transpose", "cuda", needs=_needs)(cpu.vandermonde_transpose)
