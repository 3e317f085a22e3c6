"""How much of the kernels' PTX the tests reach: never less than is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from .coverage import COMPILERS, LEAST, RECORD, Reached, losses, together, without_unreachable
from .machine import skip_reason


def test_a_kernel_that_is_reached_less_or_not_recorded_is_a_loss() -> None:
    recorded = {"one": 0.9, "two": 1.0}
    assert losses({"one": 0.896, "two": 1.0}, recorded) == []
    (lost,) = losses({"one": 0.89, "two": 1.0}, recorded)
    assert lost == "one: 89.0 % of its instructions are reached, recorded 90.0 %"
    (lost,) = losses({"new": 0.9}, recorded)
    assert lost == "new: 90.0 % of its instructions are reached, recorded 100.0 %"


def test_what_is_listed_as_unreachable_does_not_count_and_no_more_than_that() -> None:
    found = Reached(100, 80, Counter({"tiles.cuh:5": 9, "tiles.cuh:7": 3, "memory.cuh:5": 8}))
    listed = {"kernel": "one", "file": "tiles.cuh", "reason": ""}
    assert without_unreachable(found, "one", [{**listed, "instructions": 20}]).instructions == 88
    assert without_unreachable(found, "one", [{**listed, "instructions": 10}]).instructions == 90
    assert without_unreachable(found, "two", [{**listed, "instructions": 10}]) == found


def test_a_family_apart_does_not_count_with_the_others() -> None:
    found = {"one": Reached(100, 98, Counter()), "new_one": Reached(100, 10, Counter())}
    assert together(found, ["new"]) == 0.98
    assert together(found, []) == 0.54


def test_the_record_reaches_what_it_shall_and_every_exception_has_its_reason() -> None:
    for compiler, of in json.loads(RECORD.read_text()).items():
        assert of["reached"]["all"] >= LEAST[compiler]
        assert all(each["reason"] for each in of["unreachable"])
        assert all(of["apart"].values())


@pytest.mark.thorough
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_tests_reach_what_they_did(compiler: str) -> None:
    if json.loads(RECORD.read_text())[compiler]["version"] != COMPILERS[compiler].version():
        pytest.skip(f"the record is of another {compiler}")
    command = [sys.executable, "-m", "tests.ptx.coverage", compiler, "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
