"""Runs what the GPU compilers emit, PTX, on the CPU; README.md says how and what it finds."""

from .kernels import PtxKernels
from .machine import Ptx, skip_reason

__all__ = ["Ptx", "PtxKernels", "skip_reason"]
