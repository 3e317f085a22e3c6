"""Where Triton kernels run in tests: compiled on a GPU where there is one, else in Triton's interpreter on the CPU.

Triton looks at TRITON_INTERPRET when a kernel is defined, so ``interpret_without_gpu`` must come first (conftest.py).
"""

from __future__ import annotations

import importlib.util
import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def interpret_without_gpu() -> None:
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


def skip_reason() -> str | None:
    """Why no Triton kernel can run here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "no triton: pip install triton to run the Triton kernels, in its interpreter where there is no GPU"
    return None
