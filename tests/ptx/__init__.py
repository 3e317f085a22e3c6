"""Runs what the GPU compilers emit, PTX, on the CPU; README.md says how and what it finds."""

from .machine import Ptx, skip_reason

__all__ = ["Ptx", "skip_reason"]
