"""Builds the interpreter with ninja, in a folder named after the hash of its sources and of the machine."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

from tests.cuda_emulator import build as emulator

HERE = Path(__file__).parent / "interpreter"
BUILD = emulator.ROOT / "build" / "ptx"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
#: Lanes are loops that the compiler makes vectors of, and only fma fuses.
FAST = ["-O2", "-ftree-vectorize", "-march=native", "-ffp-contract=off", "-fno-math-errno"]
NOT_FAST = ("binding", "parse", "decode", "calls", "flow", "registers")  # run once a kernel


def _processor() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def build() -> Path:
    """The path of the module, built if there is none for this hash yet."""
    version = subprocess.check_output([str(emulator.compiler()), "--version"], text=True)
    settings = repr((version, sys.version, FLAGS, FAST, NOT_FAST, _processor()))
    key = emulator._hash(*sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")]), more=settings)
    module = BUILD / f"interpreter-{key}" / "_ptx.so"
    if not module.exists():
        sources = sorted(HERE.glob("*.cpp"))
        rules = [
            "rule compile",
            f"  command = {emulator.compiler()} {' '.join([*FLAGS, *emulator._includes()])} $fast -c $in -o $out",
            "rule link",
            f"  command = {emulator.compiler()} -shared $in -o $out.new && mv $out.new $out",
            *(
                f"build {source.stem}.o: compile {source}\n"
                f"  fast = {'-O1' if source.stem in NOT_FAST else ' '.join(FAST)}"
                for source in sources
            ),
            f"build {module.name}: link {' '.join(f'{source.stem}.o' for source in sources)}",
        ]
        emulator._ninja(module.parent, rules)
    return module


@functools.cache
def interpreter() -> Any:
    loader = ExtensionFileLoader("_ptx", str(build()))
    spec = importlib.util.spec_from_loader("_ptx", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
