"""A stand-in for the NVIDIA driver: records what is asked of it, and runs the kernels in the emulator."""

from .build import Built, build, skip_reason

__all__ = ["Built", "build", "skip_reason"]
