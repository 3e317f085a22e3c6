"""The C++ kernels take memory for their inputs and outputs, never a number for every pole and position."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sequence_kernels import native

from .peak_memory import ALL_PAIRS_BYTES, SEQUENCE_BYTES

if native.unavailable("cpu") is not None:
    pytest.skip(str(native.unavailable("cpu")), allow_module_level=True)
if not os.access("/proc/self/clear_refs", os.W_OK):
    pytest.skip("no Linux that lets a process forget its peak memory", allow_module_level=True)

OPS = ("vandermonde", "vandermonde_transpose", "cauchy", "cauchy_transpose", "dplr_generating")


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Growth of the resident set in a new process, whose allocator hands freed memory back."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.ops.peak_memory"],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("mode", ["", " with gradients"])
@pytest.mark.parametrize("op", OPS)
def test_memory_of_inputs_and_outputs(measured: dict[str, int], op: str, mode: str) -> None:
    """A few sequences: results, gradients, and the products that autograd makes of them."""
    assert measured[op + mode] < 8 * SEQUENCE_BYTES < ALL_PAIRS_BYTES / 4


def test_all_pairs_would_be_seen(measured: dict[str, int]) -> None:
    assert measured["all pairs"] > ALL_PAIRS_BYTES
