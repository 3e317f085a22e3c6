"""Builds what torch without CUDA lacks, and the environment of a process that has a stand-in GPU."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import torch

from tests import cuda_driver
from tests.cuda_emulator.build import compiler

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "stand_in_gpu"
TORCH = Path(torch.__file__).parent


def skip_reason() -> str | None:
    """Why there can be no stand-in here; None if there can."""
    return cuda_driver.skip_reason()


def guard() -> Path:
    """The compiled guard.cpp; pytest's workers take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = HERE / "guard.cpp"
    made = BUILD / f"guard-{torch.__version__}.so"
    with (BUILD / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
            flags = ["-std=c++20", "-O1", "-fPIC", "-shared", f"-I{TORCH / 'include'}"]
            libraries = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"]
            subprocess.run([str(compiler()), *flags, str(source), "-o", str(made), *libraries], check=True)
    return made


def environment(cache: Path, *, triton: bool = True) -> dict[str, str]:
    """For a Python process with a stand-in GPU, whose verdicts are kept below ``cache``, with Triton or without."""
    cuda_driver.build()
    paths = [str(HERE / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "STAND_IN_GPU": str(guard()),
        "TRITON_INTERPRET": "1",
        "STAND_IN_TRITON": "yes" if triton else "",
        "XDG_CACHE_HOME": str(cache),
    }
