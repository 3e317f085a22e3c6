"""Runs what the GPU compilers emit, PTX, on the CPU; README.md says how and what it finds."""

from .kernels import PtxKernels
from .machine import Ptx, of_architecture, skip_reason

__all__ = ["Ptx", "PtxKernels", "of_architecture", "skip_reason"]
