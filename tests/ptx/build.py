"""Builds the interpreter with ninja, in a folder named after the hash of its sources and of the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cuda_emulator import build as emulator

HERE = Path(__file__).parent / "interpreter"
BUILD = emulator.ROOT / "build" / "ptx"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
#: Lanes are loops that the compiler makes vectors of, and only fma fuses.
FAST = ["-O2", "-ftree-vectorize", "-march=native", "-ffp-contract=off", "-fno-math-errno"]
NOT_FAST = ("binding", "parse", "decode", "calls", "flow", "registers")  # run once a kernel
#: Precompiled: reading it takes a third of the time of most sources.
HEADER = HERE / "table.h"


def _processor() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith("flags")), "")


def build() -> Path:
    """The path of the library, built if there is none for this hash yet."""
    version = subprocess.check_output([str(emulator.compiler()), "--version"], text=True)
    settings = repr((version, FLAGS, FAST, NOT_FAST, _processor()))
    key = emulator._hash(*sorted([*HERE.glob("*.h"), *HERE.glob("*.cpp")]), more=settings)
    module = BUILD / f"interpreter-{key}" / "ptx.so"
    if not module.exists():
        sources = sorted(HERE.glob("*.cpp"))
        command = f"{emulator.compiler()} {' '.join([*FLAGS, *FAST])}"
        module.parent.mkdir(parents=True, exist_ok=True)
        (module.parent / HEADER.name).write_text(f'#include "{HEADER}"\n')
        rules = [
            "rule precompile",
            f"  command = {command} -x c++-header -c $in -o $out",
            f"build {HEADER.name}.gch: precompile {HEADER.name}",
            "rule compile",
            f"  command = {command} $slow -include {HEADER.name} -c $in -o $out",
            "rule link",
            f"  command = {emulator.compiler()} -shared $in -o $out.new && mv $out.new $out",
            *(
                f"build {source.stem}.o: compile {source} | {HEADER.name}.gch\n"
                f"  slow = {'-O1' if source.stem in NOT_FAST else ''}"
                for source in sources
            ),
            f"build {module.name}: link {' '.join(f'{source.stem}.o' for source in sources)}",
        ]
        emulator._ninja(module.parent, rules)
    return module
