"""docs/testing.md says which checks each kernel gets, and what it says is true."""

from __future__ import annotations

import subprocess
import sys

import pytest

from . import checks_table


def test_the_table_is_what_the_tests_say() -> None:
    command = [sys.executable, "-m", "tests.checks_table"]
    done = subprocess.run(command, cwd=checks_table.ROOT, capture_output=True, text=True, check=False)
    if done.stderr.startswith("cannot tell"):
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0, done.stderr
    page = checks_table.PAGE.read_text()
    assert page == checks_table.replaced(page, done.stdout), "stale: run `python -m tests.checks_table write`"


def test_kernels_are_found_in_the_sources() -> None:
    found = checks_table.kernels()
    assert "vandermonde_pairs_f32" in found["vandermonde/cuda"]
    assert "cauchy_kernel" in found["cauchy/triton"]
    assert "vandermonde_transpose" in found["vandermonde/cpu"]


def test_a_row_shows_its_own_checks_only() -> None:
    rows = checks_table.table({("vandermonde/cuda", "oracle"), ("*/triton", "GPU")}).splitlines()
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[2:] for row in rows[2:]}
    assert cells["vandermonde/cuda"] == ["yes", "", "", "", "", "", " |"]
    assert cells["cauchy/triton"][-1] == "yes |"
    assert "yes" not in "".join(cells["vandermonde/cpu"])
