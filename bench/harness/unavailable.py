"""Why a peer is absent, in a sentence that says how to have it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable


def unless_installed(module: str, install: str) -> Callable[[str], str | None]:
    """Absent where the module cannot be imported."""

    def reason(device: str) -> str | None:
        return (
            None
            if importlib.util.find_spec(module)
            else f"{module} is not installed; `pip install {install}`"
        )

    return reason


def unless_installed_on_cuda(module: str, install: str) -> Callable[[str], str | None]:
    """Absent where there is no CUDA device too: the module has no CPU code."""

    def reason(device: str) -> str | None:
        return "runs on a CUDA device only" if device != "cuda" else unless_installed(module, install)(device)

    return reason


def unless_on_cpu(device: str) -> str | None:
    """For peers whose forms make sense on a CPU only."""
    return None if device == "cpu" else "measured on a CPU only"
