"""The Triton kernels as units, an op for a target; measured in a process of its own that does not interpret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import triton_kernels

from .budget import Measurement
from .digest import ROOT
from .digest import digest as digest_of

OPS = ROOT / "sequence_kernels" / "ops"
TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")
FAST_TARGETS = ("cuda 90", "hip gfx942")
HERE = Path(__file__).parent

skip_reason = triton_kernels.skip_reason


def version() -> str:
    import triton

    return triton.__version__


def units(targets: tuple[str, ...]) -> list[str]:
    ops = sorted(path.parent.name for path in OPS.glob("*/triton.py"))
    return [f"{target} {op}" for target in targets for op in ops]


def imported(module: Path) -> list[Path]:
    """What the module imports by name from its op and from ops/: what may decide how it launches its kernels."""
    found = []
    text = module.read_text()
    for dots, source, names in re.findall(r"^from (\.+)(\w*) import (.+)$", text, re.MULTILINE):
        folder = module.parents[len(dots) - 1]
        modules = [source] if source else names.split(", ")
        found += [path for name in modules if (path := folder / f"{name}.py").exists()]
    return found


def digest(unit: str, version: str) -> str:
    target, _, op = unit.rpartition(" ")
    module = OPS / op / "triton.py"
    launches = [HERE / "triton_launches.py", HERE / "triton_compiler.py"]
    return digest_of([version, target], [module, *imported(module), *launches])


def measure(units: list[str]) -> Measurement:
    if not units:
        return {}
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TRITON_INTERPRET": "0", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_CACHE_DIR": cache}
        environment = {**os.environ, **settings}
        command = [sys.executable, "-m", "tests.aot", "triton", *units]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"compiling the Triton kernels failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
