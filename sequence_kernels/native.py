"""Finds and loads the compiled libraries: each at its first use, once, and never at import."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

_DIRECTORY = Path(__file__).parent
_FIX = {
    "cpu": "have a C++ compiler (`apt-get install g++`) and, in the source tree, run `pip install --force-reinstall "
    "--no-deps .`",
    "cuda": "install a wheel of sequence-kernels that holds the CUDA kernels",
}
_lock = threading.Lock()
_reasons: dict[str, str | None] = {}


def load(name: str) -> None:
    """Load the compiled library ``name`` ("cpu" or "cuda"), once; does not raise, see ``why_not``."""
    why_not(name)


def why_not(name: str) -> str | None:
    """None if the compiled library ``name`` is loaded, else the reason why not and the command that mends it.

    Loads the library at the first call; threads that come together wait for the one load.
    """
    if name not in _FIX:
        raise ValueError(f"name must be one of {tuple(_FIX)}, got {name!r}")
    with _lock:
        if name not in _reasons:
            reason = _try_to_load(name)
            _reasons[name] = reason and f"{reason}; {_FIX[name]}"
        return _reasons[name]


def _try_to_load(name: str) -> str | None:
    path = _DIRECTORY / f"_native_{name}.so"
    if name == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA"
    if not path.exists():
        return f"the compiled library {path.name} was not built when sequence_kernels was installed"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled library {path.name} does not load ({error.__cause__ or error})"
    return None
