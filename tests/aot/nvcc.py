"""Compiles the kernels of csrc/ with nvcc and reads what ptxas says of them; a unit is a file for an architecture."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .budget import Measurement, Resources
from .digest import ROOT
from .digest import digest as digest_of

CSRC = ROOT / "csrc"
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
FAST_TARGETS = ("sm_80", "sm_90")
FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-cubin"]

_REPORT = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(.*?)\n",
    re.DOTALL,
)


def skip_reason() -> str | None:
    return (
        None if shutil.which("nvcc") else "no nvcc: install the CUDA toolkit to compile the kernels of csrc/"
    )


def version() -> str:
    found = re.search(r"V(\d+\.\d+\.\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    assert found is not None
    return found[1]


def units(architectures: tuple[str, ...]) -> list[str]:
    sources = sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("*/*.cu"))
    return [f"{architecture} {source}" for architecture in architectures for source in sources]


def included(source: Path, seen: set[Path]) -> Iterator[Path]:
    """The files of csrc/ that the source includes, each once, itself first."""
    if source in seen or not source.exists():
        return
    seen.add(source)
    yield source
    for name in re.findall(r'^\s*#\s*include\s+"(.+)"', source.read_text(), re.MULTILINE):
        yield from included(source.parent / name, seen)
        yield from included(CSRC / name, seen)


def digest(unit: str, version: str) -> str:
    architecture, source = unit.split()
    return digest_of([version, *FLAGS, architecture], included(CSRC / source, set()))


def parse(report: str) -> dict[str, Resources]:
    kernels = {}
    for name, stores, loads, registers, rest in _REPORT.findall(report + "\n"):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels[name] = {
            "registers": int(registers),
            "spill_bytes": int(stores) + int(loads),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return kernels


def compile_file(source: Path, architecture: str) -> dict[str, Resources]:
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "kernels.cubin")
        command = ["nvcc", *FLAGS, f"-I{CSRC}", f"-arch={architecture}", "-o", output, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc refused {source.name} for {architecture}:\n{done.stderr}")
    return parse(done.stderr)


def measure(units: list[str]) -> Measurement:
    def one(unit: str) -> dict[str, Resources]:
        architecture, source = unit.split()
        return compile_file(CSRC / source, architecture)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(units, pool.map(one, units), strict=True))
