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


def compiled(source: Path, architecture: str) -> Path:
    """A .cu file as PTX; pytest's workers take turns."""
    key = digest([_version(), *FLAGS, architecture], nvcc.included(source, set()))
    found = BUILD / f"{source.parent.name}-{source.stem}-{architecture}-{key}.ptx"
    if found.exists():
        return found
    BUILD.mkdir(parents=True, exist_ok=True)
    with found.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            target = f"-arch={architecture.replace('sm', 'compute')}"
            made = found.with_suffix(".new")
            command = ["nvcc", *FLAGS, f"-I{CSRC}", target, "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"nvcc refused {source.name} for {architecture}:\n{done.stderr}")
            made.rename(found)
    return found
