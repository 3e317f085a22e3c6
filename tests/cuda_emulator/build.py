"""Builds a Python module from kernel files with ninja, in a folder named after the hash of their sources."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_emulator"

#: -O2 makes the kernels a tenth faster, and takes half as long again to compile.
FLAGS = [
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
]
KERNEL_FLAGS = ["-x", "c++", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-variable", "-ffp-contract=fast"]
CHECK_FLAGS = ["-fsanitize=thread", "-fno-omit-frame-pointer"]


def compiler() -> str | None:
    """The C++ compiler to use, or None."""
    return next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)


def skip_reason() -> str | None:
    """Why the emulator cannot be built here; None if it can."""
    if compiler() is None:
        return "no C++ compiler: install g++ to run the CUDA kernels in the emulator"
    for module in ("pybind11", "ninja"):
        try:
            __import__(module)
        except ImportError:
            return f"the emulator needs {module}: pip install {module}"
    return None


def _includes() -> list[str]:
    import pybind11

    folders = [HERE / "include", ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"]]
    return [f"-I{folder}" for folder in folders]


def sources(kernels: Sequence[Path]) -> list[Path]:
    """Kernel files and the headers of csrc/ that they include."""
    found = [*kernels]
    for path in found:
        for header in re.findall(r'#\s*include "([^"]+)"', path.read_text()):
            if (ROOT / "csrc" / header).exists() and ROOT / "csrc" / header not in found:
                found.append(ROOT / "csrc" / header)
    return found


def _hash(*paths: Path, more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _emulator_hash() -> str:
    version = subprocess.check_output([str(compiler()), "--version"], text=True)
    settings = repr((version, sys.version, FLAGS, KERNEL_FLAGS, CHECK_FLAGS, _includes()))
    return _hash(*sorted([*HERE.rglob("*.h"), *HERE.rglob("*.cpp")]), more=settings)


def _ninja(folder: Path, rules: list[str]) -> None:
    """Builds in a folder; pytest's workers take turns if they build the same."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text("\n".join([*rules, ""]))
        done = subprocess.run(
            [sys.executable, "-m", "ninja", "-C", str(folder), "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"building {folder.name} failed:\n{done.stdout}{done.stderr}")


def _binding() -> Path:
    folder = BUILD / f"binding-{_emulator_hash()}"
    compile_rule = f"  command = {compiler()} {' '.join([*FLAGS, *_includes()])} -c $in -o $out"
    source = HERE / "runtime" / "binding.cpp"
    _ninja(folder, ["rule compile", compile_rule, f"build binding.o: compile {source}"])
    return folder / "binding.o"


def build(kernels: Sequence[Path], check: bool) -> Path:
    """The path of the module for these kernel files, built if there is none for their hash yet."""
    mode = "check" if check else "plain"
    key = _hash(*sources(kernels), more=_emulator_hash())
    folder = BUILD / f"{kernels[0].parent.name}-{kernels[0].stem}-{mode}-{key}"
    module = folder / "_cuda_emulator.so"
    if not module.exists():
        flags = [*FLAGS, *KERNEL_FLAGS, *(CHECK_FLAGS if check else []), *_includes()]
        rules = [
            "rule compile",
            f"  command = {compiler()} {' '.join(flags)} -c $in -o $out",
            "rule link",
            f"  command = {compiler()} -shared $in -o $out.new -ldl && mv $out.new $out",
            *(f"build {source.stem}.o: compile {source}" for source in kernels),
            f"build {module.name}: link {' '.join(f'{source.stem}.o' for source in kernels)} {_binding()}",
        ]
        _ninja(folder, rules)
    return module
