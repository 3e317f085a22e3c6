"""Counts of the kernels' PTX: kinds of instructions, what counts as worse, and the recorded counts themselves."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.harness import ptx
from tests.aot import nvcc
from tests.ptx import skip_reason
from tests.ptx.counting import flops, kind

COUNTS = {"launches": 2, "instructions": 1000, "sectors": 100, "shared_passes": 50, "bank_conflicts": 0}


@pytest.mark.parametrize(
    ("opcode", "expected", "operations"),
    [
        ("fma.rn.f32", "float", 64),
        ("add.f64", "float", 32),
        ("max.f32", "float", 0),
        ("add.s32", "integer", 0),
        ("cvt.rn.f32.s32", "integer", 0),
        ("ld.param.u64", "integer", 0),
        ("ld.global.v2.f32", "memory", 0),
        ("cp.async.ca.shared.global", "memory", 0),
        ("setp.lt.s32", "control", 0),
        ("bar.sync", "control", 0),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "tensor", 2 * 16 * 8 * 8),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "tensor", 2 * 8 * 8 * 4),
    ],
)
def test_kinds_and_operations(opcode: str, expected: str, operations: int) -> None:
    assert kind(opcode) == expected
    assert flops(opcode) == operations


def test_what_grows_by_more_than_a_hundredth_is_worse() -> None:
    recorded = {"op": COUNTS}
    assert ptx.regressions({"op": {**COUNTS, "instructions": 1010, "sectors": 90}}, recorded) == []
    (worse,) = ptx.regressions({"op": {**COUNTS, "instructions": 1011}}, recorded)
    assert worse == "op: instructions 1011, recorded 1000"
    (worse,) = ptx.regressions({"op": {**COUNTS, "bank_conflicts": 1}}, recorded)
    assert worse == "op: bank_conflicts 1, recorded 0"


def test_what_is_not_recorded_is_worse() -> None:
    worse = ptx.regressions({"other": COUNTS}, {"op": COUNTS})
    assert [line.split(",")[1] for line in worse] == [" recorded nothing"] * len(ptx.GATED)


def test_every_operation_is_recorded() -> None:
    recorded = json.loads(ptx.RECORD.read_text())["counts"]
    assert {name.split()[0] for name in recorded} == set(ptx.OPERATIONS)


@pytest.mark.thorough
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
def test_no_count_has_grown() -> None:
    if json.loads(ptx.RECORD.read_text())["nvcc"] != nvcc.version():
        pytest.skip("the record is of another nvcc")
    done = subprocess.run([sys.executable, "-m", "bench", "ptx"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none has grown" in done.stdout
