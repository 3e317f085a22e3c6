"""Compiles the kernels of csrc/ with nvcc and reads what ptxas says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .budget import Measurement, Resources

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
FLAGS = ["-std=c++17", "-O3", "-Xptxas", "-v", "-cubin", f"-I{ROOT / 'csrc'}"]

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
        command = [
            "nvcc",
            *FLAGS,
            f"-arch={architecture}",
            "-o",
            str(Path(folder) / "kernels.cubin"),
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc refused {source.name} for {architecture}:\n{done.stderr}")
    return parse(done.stderr)


def measure(architectures: tuple[str, ...] = ARCHITECTURES) -> Measurement:
    sources = sorted((ROOT / "csrc").glob("*/*.cu"))
    measured: Measurement = {}
    for architecture in architectures:
        measured[architecture] = {}
        for source in sources:
            measured[architecture].update(compile_file(source, architecture))
    return measured
