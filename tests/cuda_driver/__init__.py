"""A stand-in for the NVIDIA driver: records what is asked of it, and runs the kernels in the emulator."""

from .build import Built, build, skip_reason
from .driver import ORDERS, Driver, driver

__all__ = ["ORDERS", "Built", "Driver", "build", "driver", "skip_reason"]
