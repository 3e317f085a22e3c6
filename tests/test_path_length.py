"""How far it is from a layer's ``forward`` to the kernel: Python calls, files, and moves between files."""

from __future__ import annotations

import ast
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import sequence_kernels
from sequence_kernels import S4D, native

ROOT = Path(sequence_kernels.__file__).parent


def path_to_the_kernel(length: int) -> list[str]:
    """The file of each of the package's calls, in order, until the compiled convolution is called."""
    layer, x = S4D(8), torch.randn(1, 8, length)
    layer.forward(x)
    files: list[str] = []

    def record(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.append(str(Path(frame.f_code.co_filename).relative_to(ROOT)))

    sys.setprofile(record)
    try:
        layer.forward(x)
    finally:
        sys.setprofile(None)
    last = max(i for i, file in enumerate(files) if file in ("ops/ssm_conv/cpu.py", "ops/ssm_direct/cpu.py"))
    return files[: last + 1]


@pytest.mark.skipif(
    native.unavailable("cpu") is not None, reason="the path without a compiled library is another"
)
@pytest.mark.parametrize("length", [1, 64, 4096])
def test_s4d_is_close_to_its_kernel(length: int) -> None:
    """What it takes, so that it does not grow."""
    files = path_to_the_kernel(length)
    moves = sum(a != b for a, b in pairwise(files))
    assert len(files) <= 40, files
    assert len(set(files)) <= 10, sorted(set(files))
    assert moves <= 15, files  # two of them to the op that discretises, which calls less than torch did


def test_layers_know_no_backend() -> None:
    for path in (ROOT / "layers").glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"choose", "backend"}, path
