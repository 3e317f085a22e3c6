"""Runs what the GPU compilers emit, PTX, on the CPU; README.md says how and what it finds."""

from .kernels import PtxKernels
from .machine import Ptx, of_architecture, skip_reason
from .triton import of_target, on_ptx
from .triton import skip_reason as triton_skip_reason

__all__ = ["Ptx", "PtxKernels", "of_architecture", "of_target", "on_ptx", "skip_reason", "triton_skip_reason"]
