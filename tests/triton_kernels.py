"""Where Triton kernels run in tests: compiled on a GPU where there is one, else in Triton's interpreter on the CPU.

Triton looks at TRITON_INTERPRET when it is imported (torch may do that) and when a kernel is defined, so
``interpret_without_gpu`` comes before everything else, in ``tests/__init__.py``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def interpret_without_gpu() -> None:
    if not any(Path(device).exists() for device in GPU_DEVICES):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def skip_reason() -> str | None:
    """Why no Triton kernel can run here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "no triton: pip install triton to run the Triton kernels, in its interpreter where there is no GPU"
    if device() == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "this torch cannot use the GPU that is here: set TRITON_INTERPRET=1 to run the Triton kernels on the CPU"
    return None


def compiled(request: Any) -> bool:
    """Does this test, by pytest's request, run what Triton compiles, not the interpreter, which is slow?"""
    return device() == "cuda" or request.node.callspec.params.get("machine") is not None
