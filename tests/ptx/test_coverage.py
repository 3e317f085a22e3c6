"""How much of the kernels' PTX the tests reach: never less than is recorded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .coverage import COMPILERS, RECORD, losses
from .machine import skip_reason


def test_a_kernel_that_is_reached_less_or_not_recorded_is_a_loss() -> None:
    recorded = {"one": 0.9, "two": 1.0}
    assert losses({"one": 0.896, "two": 1.0}, recorded) == []
    (lost,) = losses({"one": 0.89, "two": 1.0}, recorded)
    assert lost == "one: 89.0 % of its instructions are reached, recorded 90.0 %"
    (lost,) = losses({"new": 0.9}, recorded)
    assert lost == "new: 90.0 % of its instructions are reached, recorded 100.0 %"


@pytest.mark.thorough
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_tests_reach_what_they_did(compiler: str) -> None:
    if json.loads(RECORD.read_text())[compiler]["version"] != COMPILERS[compiler].version():
        pytest.skip(f"the record is of another {compiler}")
    command = [sys.executable, "-m", "tests.ptx.coverage", compiler, "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
