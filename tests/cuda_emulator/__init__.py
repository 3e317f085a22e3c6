"""Runs the CUDA kernels of csrc/ on the CPU; README.md says how and what it finds."""

from .kernels import Kernels, skip_reason

__all__ = ["Kernels", "skip_reason"]
