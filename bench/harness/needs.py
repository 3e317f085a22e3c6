"""Why a peer is absent, in a sentence that says how to have it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable


def package(module: str, install: str) -> Callable[[str], str | None]:
    """Needs an importable module."""

    def reason(device: str) -> str | None:
        return (
            None
            if importlib.util.find_spec(module)
            else f"{module} is not installed; `pip install {install}`"
        )

    return reason


def package_on_cuda(module: str, install: str) -> Callable[[str], str | None]:
    """Needs a CUDA device, and a module that has no CPU code."""

    def reason(device: str) -> str | None:
        return "runs on a CUDA device only" if device != "cuda" else package(module, install)(device)

    return reason


def cpu_only(device: str) -> str | None:
    """For peers whose forms make sense on a CPU only."""
    return None if device == "cpu" else "measured on a CPU only"
