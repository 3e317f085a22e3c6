"""Every GPU kernel, launched on a GPU by the calls that prove it: what compute-sanitizer watches."""

from __future__ import annotations

import pytest
import torch

from sequence_kernels import proofs, prove
from sequence_kernels.ops import dispatch
from sequence_kernels.proofs import judge

pytestmark = [pytest.mark.gpu, pytest.mark.checks("GPU", of="*/cuda")]

DEVICE = torch.device("cuda", 0)
UNITS = dispatch.units(DEVICE) if torch.cuda.is_available() else {}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_kernels_that_compute_sanitizer_watches(unit: proofs.Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long they take under it; nothing is put on record."""
    monkeypatch.setattr(judge, "SLOW", float("inf"))
    before = torch.backends.cuda.matmul.fp32_precision
    prove.allow_tf32(unit.precision)
    try:
        verdict = proofs.prove(unit, UNITS[unit])
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert verdict.passed, verdict.said


def test_there_are_kernels_to_prove() -> None:
    assert UNITS
