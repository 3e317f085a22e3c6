"""PTX of .cu files from nvcc, kept by the hash of what it was made from."""

from __future__ import annotations

import fcntl
import functools
import re
import subprocess
from pathlib import Path

from tests.aot import nvcc
from tests.aot.digest import digest

from .build import BUILD

FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-ptx"]
CSRC, skip_reason = nvcc.CSRC, nvcc.skip_reason


@functools.cache
def _version() -> str:
    return nvcc.version()


def kernels_of(source: Path) -> list[str]:
    """The names of the kernels, by the sources' own convention."""
    return re.findall(r"^KERNEL\((\w+),", source.read_text(), re.MULTILINE)


def _path(source: Path, architecture: str) -> Path:
    key = digest([_version(), *FLAGS, architecture], nvcc.included(source, set()))
    return BUILD / f"{source.parent.name}-{source.stem}-{architecture}-{key}.ptx"


def _compile(source: Path, architecture: str, path: Path) -> None:
    made = path.with_suffix(".new")
    target = f"-arch={architecture.replace('sm', 'compute')}"
    command = ["nvcc", *FLAGS, f"-I{CSRC}", target, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc refused {source.name} for {architecture}:\n{done.stderr}")
    made.rename(path)


def _compiled(source: Path, architecture: str, wait: int) -> bool:
    """Is it there, unless ``wait`` is LOCK_NB and another process is at it?"""
    path = _path(source, architecture)
    if path.exists():
        return True
    BUILD.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | wait)
        except BlockingIOError:
            return False
        if not path.exists():
            _compile(source, architecture, path)
    return True


def compiled(source: Path, architecture: str) -> Path:
    """A .cu file as PTX; where another of pytest's workers compiles it, those beside it are compiled meanwhile."""
    if not _compiled(source, architecture, fcntl.LOCK_NB):
        for other in sorted(source.parent.glob("*.cu")):
            _compiled(other, architecture, fcntl.LOCK_NB)
        _compiled(source, architecture, 0)
    return _path(source, architecture)
