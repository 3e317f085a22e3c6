"""docs/testing.md says which checks each kernel gets, and what it says is true."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sequence_kernels import native

from . import checks_table
from .conftest import COLLECTED


def test_the_table_is_what_the_tests_say(pytestconfig: pytest.Config) -> None:
    page = checks_table.PAGE.read_text()
    assert page == checks_table.replaced(page, new_table(pytestconfig)), (
        "stale: run `python -m tests.checks_table write`"
    )


def new_table(config: pytest.Config) -> str:
    """From the tests that this run has read, if that is all of them."""
    items = config.stash[COLLECTED]
    if native.unavailable("cpu") is None and checks_table.all_in(items):
        return checks_table.table(checks_table.checked_in(items))
    command = [sys.executable, "-m", "tests.checks_table"]
    done = subprocess.run(command, cwd=checks_table.ROOT, capture_output=True, text=True, check=False)
    if done.stderr.startswith("cannot tell"):
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_are_found_in_the_sources() -> None:
    found = checks_table.kernels()
    assert "vandermonde_pairs_f32" in found["vandermonde/cuda"]
    assert "cauchy_kernel" in found["cauchy/triton"]


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason="needs the native library")
def test_every_native_op_is_found() -> None:
    # In a process of its own: other tests register ops of stand-in libraries beside these.
    listed = "from sequence_kernels import native; native.unavailable('cpu'); import torch; "
    listed += "print(*torch._C._dispatch_get_all_op_names())"
    names = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, check=True).stdout
    prefix = "sequence_kernels_native::"
    ops = {name.removeprefix(prefix) for name in names.split() if name.startswith(prefix)}
    ops -= {"limit_instruction_set", "received"}  # no kernels
    found = {name for row, names in checks_table.kernels().items() if row.endswith("/cpu") for name in names}
    assert {name for name in ops if not name.endswith("_cuda")} == found


def test_a_row_shows_its_own_checks_only() -> None:
    rows = checks_table.table({("vandermonde/cuda", "oracle"), ("*/triton", "GPU")}).splitlines()
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[2:] for row in rows[2:]}
    assert cells["vandermonde/cuda"] == ["yes", "", "", "", "", "", "", " |"]
    assert cells["cauchy/triton"][-1] == "yes |"
    assert "yes" not in "".join(cells["vandermonde/cpu"])
