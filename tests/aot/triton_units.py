"""The Triton kernels as units, an op for a target; measured in a process of its own that does not interpret."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests import triton_kernels

from .budget import Measurement
from .digest import ROOT
from .digest import digest as digest_of
from .triton_launches import LAUNCHES

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


@functools.cache
def imports(text: str) -> list[tuple[int, str, list[str]]]:
    """Dots, source and names of what a module imports within its package, wherever in it."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    return [(node.level, node.module or "", [name.name for name in node.names]) for node in nodes]


def imported(module: Path) -> Iterator[Path]:
    """The files of ops/ that the module imports, a package's too."""
    for dots, source, names in imports(module.read_text()):
        folder = module.parents[dots - 1].joinpath(*source.split("."))
        for place in [folder / name for name in names] + ([folder] if source else []):
            files = place.with_suffix(".py"), place / "__init__.py"
            yield from (path for path in files if path.is_relative_to(OPS) and path.exists())


def followed(module: Path, seen: set[Path]) -> Iterator[Path]:
    """The module and what it imports of ops/, by way of those too, each once: what may decide how kernels are launched.

    dispatch.py is left out: it chooses who launches them, and leads to the compiled libraries.
    """
    if module in seen or module == OPS / "dispatch.py":
        return
    seen.add(module)
    yield module
    for file in imported(module):
        yield from followed(file, seen)


def digest(unit: str, version: str) -> str:
    target, _, op = unit.rpartition(" ")
    sources = [*followed(OPS / op / "triton.py", set()), HERE / "triton_compiler.py"]
    return digest_of([version, target, *launches(op)], sources)


def launches(op: str) -> list[str]:
    """The launches of the op that are compiled, each in a line."""
    return [
        f"{label}: {function}({', '.join(map(_described, args))})"
        for label, module, function, args in LAUNCHES
        if module.split(".")[-2] == op
    ]


def _described(argument: Any) -> str:
    """Of a tensor what a launch may depend on."""
    if not isinstance(argument, torch.Tensor):
        return repr(argument)
    return f"{argument.dtype}{[*argument.shape]}{[*argument.stride()]}"


def measure(units: list[str]) -> Measurement:
    return measured_by("-m", "tests.aot", "triton", *units) if units else {}


def measured_by(*program: str) -> Measurement:
    """What Python prints of that program, where Triton compiles."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TRITON_INTERPRET": "0", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_CACHE_DIR": cache}
        environment = {**os.environ, **settings}
        command = [sys.executable, *program]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"compiling the Triton kernels failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
