"""Finds and loads the compiled libraries: each at its first use, once, and never at import."""

from __future__ import annotations

import ctypes
import hashlib
import json
import runpy
import threading
from pathlib import Path
from typing import Any

import torch

from . import installation

_DIRECTORY = Path(__file__).parent
LIBRARIES = ("cpu", "cuda")
_lock = threading.RLock()
_reasons: dict[str, str | None] = {}


def unavailable(name: str) -> str | None:
    """None if the compiled library ``name`` is loaded, else the reason why not and the command that mends it.

    Loads the library at the first call; threads that come together wait for the one load.
    """
    if name not in LIBRARIES:
        raise ValueError(f"name must be one of {LIBRARIES}, got {name!r}")
    with _lock:
        if name not in _reasons:
            _reasons[name] = _try_to_load(name)
        return _reasons[name]


def how_to_build(name: str) -> str:
    """What to do where the library ``name`` was not built."""
    if name == "cpu":
        return f"have a C++ compiler (`apt-get install g++`) and {installation.again(_DIRECTORY)}"
    return (
        "install a wheel of sequence-kernels that holds the CUDA kernels or, from a source tree and with your CUDA "
        f"toolkit's version, {installation.again(_DIRECTORY, 'SEQUENCE_KERNELS_CUDA=13.0')}"
    )


def built_with(name: str) -> dict[str, Any] | None:
    """What compiled the library ``name`` and for what (setup.py writes it); None where nothing readable says so."""
    try:
        facts = json.loads((_DIRECTORY / f"_native_{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def build() -> int | None:
    """The number of the sources that the library for the CPU was built from, which is in the library too."""
    number = (built_with("cpu") or {}).get("build")
    return number if isinstance(number, int) else None


def is_installed(name: str) -> bool:
    """True where the file of the library ``name`` is there, whether or not it loads."""
    return _path(name).exists()


def was_built(name: str) -> bool:
    """True where the library ``name`` has been here, whether or not it is there still."""
    path = _path(name)
    return path.with_suffix(".json").exists() or installation.came_with(_DIRECTORY, path.name)


def _path(name: str) -> Path:
    return _DIRECTORY / f"_native_{name}.so"


def _try_to_load(name: str) -> str | None:
    # the library for the CPU defines the ops
    if name == "cuda" and (reason := _no_cuda() or unavailable("cpu")):
        return reason
    path = _path(name)
    if not path.exists():
        if was_built(name):
            return f"the compiled library {path.name} was here and is gone; {installation.again(_DIRECTORY)}"
        return (
            f"the compiled library {path.name} was not built when sequence_kernels was installed; "
            f"{how_to_build(name)}"
        )
    if fault := _damage(name) or _age(name):
        return f"the compiled library {path.name} {fault}; {installation.again(_DIRECTORY)}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"the compiled library {path.name} does not load ({error.__cause__ or error}); {how_to_build(name)}"
    return None


def _damage(name: str) -> str | None:
    """In what the library is not what was built. Opening a damaged one can kill the process, so this comes first."""
    facts = built_with(name) or {}
    if not {"size", "sha256"} <= facts.keys():
        return f"cannot be checked: _native_{name}.json is missing or does not hold its size and hash"
    library = _path(name).read_bytes()
    if len(library) != facts["size"]:
        return f"is damaged: it has {len(library)} bytes, and {facts['size']} were built"
    if hashlib.sha256(library).hexdigest() != facts["sha256"]:
        return "is damaged: its bytes are not those that were built"
    return None


def _age(name: str) -> str | None:
    """Whether a source tree has other sources by now; what is installed has none, and came in one piece."""
    tool = _DIRECTORY.parent / "tools/fingerprint.py"
    if name != "cpu" or not installation.is_source_tree(_DIRECTORY) or not tool.exists():
        return None
    if runpy.run_path(str(tool))["build_number"](_DIRECTORY.parent / "csrc") != build():
        return "was built from other sources than those in csrc"
    return None


def _no_cuda() -> str | None:
    """What CUDA lacks here; looks for the driver's library without starting the driver."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA; install a torch with CUDA (https://pytorch.org/get-started)"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({error}); install one, or give the container its GPUs"
    return None
