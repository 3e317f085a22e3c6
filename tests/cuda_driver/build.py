"""Builds the CUDA library by setup.py with a stand-in nvcc, and the stand-ins of libcuda.so.1 and of torch's part."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from sequence_kernels import native
from tests.cuda_emulator import build as emulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_driver"


class Built(NamedTuple):
    driver: Path
    torch_cuda: Path
    library: Path
    fatbins: list[Path]


def skip_reason() -> str | None:
    """Why the stand-in cannot be used here; None if it can."""
    if native.unavailable("cpu") is not None:
        return native.unavailable("cpu")  # which defines the ops
    if torch.version.cuda is not None:
        return "this torch has CUDA: its own stream and driver are used, and the ops' tests run on the GPU"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return emulator.skip_reason()
    return "there is a driver here, which the stand-in would have to hide"


def source_tree(folder: Path) -> None:
    """The device part of csrc/ and a sample of it; unchanged files keep their times, so that little is rebuilt."""
    shutil.rmtree(folder / "csrc", ignore_errors=True)
    (folder / "sequence_kernels").mkdir(parents=True, exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder)
    shutil.copytree(ROOT / "tools", folder / "tools", dirs_exist_ok=True)
    for part in sorted({"runtime", *(path.parent.name for path in (ROOT / "csrc").glob("*/*.cu"))}):
        others = shutil.ignore_patterns("cpu*.cpp", "register.cpp")
        shutil.copytree(ROOT / "csrc" / part, folder / "csrc" / part, ignore=others)
    shutil.copy2(ROOT / "csrc" / "architectures.txt", folder / "csrc")
    shutil.copytree(HERE / "sample", folder / "csrc" / "sample")


def setup(folder: Path, version: str, cuda_home: Path | None) -> Path:
    """Run setup.py in a source tree, by default with the nvcc on PATH; the CUDA library that it makes.

    The host code is not optimised, which takes a third of the time.
    """
    compiler = shlex.join([str(HERE / "bin" / "unoptimised"), str(emulator.compiler())])
    environment = {**os.environ, "SEQUENCE_KERNELS_CUDA": version, "CXX": compiler}
    environment.pop("CUDA_HOME", None)
    environment.pop("PYTHONPATH", None)  # of a process with a stand-in GPU
    if cuda_home is not None:
        environment["CUDA_HOME"] = str(cuda_home)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"setup.py failed:\n{done.stdout}{done.stderr}")
    return folder / "sequence_kernels" / "_native_cuda.so"


def stand_ins(folder: Path) -> None:
    """libcuda.so.1 with the emulated kernels inside, and what the library finds in torch or in place of it."""
    includes = [f"-I{path}" for path in (HERE.parent / "cuda_emulator" / "runtime", folder / "csrc")]
    flags = " ".join([*emulator.FLAGS, *emulator._includes(), *includes])
    rules = [
        "rule compile",
        f"  command = {emulator.compiler()} {flags} $more -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {emulator.compiler()} -shared $in -o $out -Wl,-soname,$out",
        f"build driver.o: compile {HERE / 'driver.cpp'}",
        f"build torch_cuda.o: compile {HERE / 'torch_cuda.cpp'}",
        "build libtorch_cuda.so: link torch_cuda.o",
    ]
    sources = sorted((folder / "csrc").glob("*/*.cu"))
    objects = [f"{source.parent.name}.{source.stem}.o" for source in sources]
    for source, name in zip(sources, objects, strict=True):
        rules.append(f"build {name}: compile {source}")
        rules.append(f"  more = {' '.join([*emulator.KERNEL_FLAGS, *emulator.CHECK_FLAGS])}")
    emulator._ninja(folder, [*rules, f"build libcuda.so.1: link driver.o {' '.join(objects)}"])


@functools.cache
def build() -> Built:
    """Builds what has changed since the last process; pytest's workers take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        source_tree(BUILD)
        setup(BUILD, "13.0", HERE)
        stand_ins(BUILD)
    return built()


def built() -> Built:
    """What ``build`` made last."""
    fatbins = sorted(BUILD.glob("build/temp*/native/*.fatbin"))
    library = BUILD / "sequence_kernels" / "_native_cuda.so"
    return Built(BUILD / "libcuda.so.1", BUILD / "libtorch_cuda.so", library, fatbins)
