"""A GPU for torch without one: tensors on `cuda`, torch's ops on the CPU, ours on the stand-in driver.

``environment()`` is that of a Python process that has it from its start, and so have its children.
"""

from .build import environment, skip_reason

__all__ = ["environment", "skip_reason"]
