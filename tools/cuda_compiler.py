"""Finds what compiles the CUDA kernels for one version of CUDA, and says for which GPUs.

In this order: nvcc in CUDA_HOME or on PATH, nvcc from NVIDIA's packages on PyPI, NVRTC from those packages. The
packages are looked for where Python looks for modules, so that a folder that `pip install --target` filled serves when
PYTHONPATH names it. Nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nvrtc

ROOT = Path(__file__).parents[1]


class Cuda(NamedTuple):
    """A CUDA compiler and what it compiles for."""

    version: str  # of CUDA, for example 12.9
    name: str  # of the compiler, for people
    command: list[str]  # takes nvcc's options
    architectures: list[str]  # compute capabilities without the point; the last one's PTX is kept too


def find(version: str) -> Cuda:
    """The compiler for that version of CUDA; exits with what is missing where there is none."""
    if not re.fullmatch(r"\d+\.\d+", version):
        sys.exit(f"SEQUENCE_KERNELS_CUDA must be a version of CUDA, for example 13.0, got {version!r}")
    architectures = architectures_for(version)
    seen = []
    for name, command, its_version in candidates():
        if its_version == version:
            return Cuda(version, name, command, architectures)
        seen.append(f"{name} of CUDA {its_version}")
    sys.exit(
        f"SEQUENCE_KERNELS_CUDA={version} needs a compiler of CUDA {version}, and found "
        f"{', '.join(seen) or 'none'}: set CUDA_HOME to the folder of that toolkit, or run "
        f"`pip install {' '.join(repr(package) for package in packages(version))}`"
    )


def packages(version: str) -> list[str]:
    """NVIDIA's packages on PyPI that compile for that version: the compiler itself from CUDA 13 on, else NVRTC."""
    major = int(version.partition(".")[0])
    if major >= 13:
        parts = ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
        return [f"nvidia-{part}=={version}.*" for part in parts]
    return [f"nvidia-{part}-cu{major}=={version}.*" for part in ("cuda-nvrtc", "nvfatbin", "cuda-runtime")]


def candidates() -> Iterator[tuple[str, list[str], str]]:
    """Every compiler here, best first: what it is, its command, its version of CUDA."""
    home = os.environ.get("CUDA_HOME")
    folders = [Path(path) / "nvidia" for path in sys.path if path]
    nvccs = [shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None, shutil.which("nvcc")]
    nvccs += [str(path) for folder in folders for path in sorted(folder.glob("cu*/bin/nvcc"), reverse=True)]
    for nvcc in nvccs:
        if nvcc is None:
            continue
        text = subprocess.check_output([nvcc, "--version"], text=True)
        found = re.search(r"release (\d+\.\d+)(?:, V([\d.]+))?", text)
        if found:
            yield f"nvcc {found[2] or found[1]}", [nvcc], found[1]
    for folder in folders:
        if any(folder.glob("*/lib/libnvrtc.so.*")) and any(folder.glob("*/lib/libnvfatbin.so.*")):
            version = nvrtc.version(folder)
            yield f"NVRTC {version}", [sys.executable, nvrtc.__file__, "--cuda", str(folder)], version


def architectures_for(version: str) -> list[str]:
    """What csrc/architectures.txt says in the last line that does not want a newer CUDA."""
    text = (ROOT / "csrc" / "architectures.txt").read_text()
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]

    def number(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    served = [architectures for since, *architectures in lines if number(since) <= number(version)]
    if not served:
        sys.exit(f"SEQUENCE_KERNELS_CUDA={version} is older than what the kernels need, CUDA {lines[0][0]}")
    return served[-1]
