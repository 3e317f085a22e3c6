"""A stand-in for the NVIDIA driver: records what is asked of it, and runs the kernels in the emulator."""

from .build import Built, build, skip_reason
from .driver import ORDERS, Buffer, Driver, driver

__all__ = ["ORDERS", "Buffer", "Built", "Driver", "build", "driver", "skip_reason"]
