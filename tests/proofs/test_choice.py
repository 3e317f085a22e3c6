"""What is asked of proofs: for which tensors, which precision; and that every op with GPU kernels has some."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from sequence_kernels import native, ops
from sequence_kernels.ops import dispatch


def test_a_library_without_a_gpu_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a login node: libcuda.so.1 is there, and no GPU is."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(native, "_reasons", {"cuda": None, "cpu": native.unavailable("cpu")})
    dispatch.forget()
    try:
        assert "cuda: there is no GPU here that torch can use" in ops.explain("vandermonde", "cuda")
    finally:
        dispatch.forget()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.5.1", r"triton 3\.5\.1 is too old: the kernels need 3\.6, .*`pip install 'triton>=3\.6'`"),
        ("2.3.0", "too old"),
        ("3.6.0", None),
        ("3.10.0+git1", None),
        ("4.0", None),
    ],
)
def test_a_triton_that_is_too_old_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, reason: str | None
) -> None:
    (tmp_path / "triton.py").write_text(f'"""Triton."""\n__version__ = \'{version}\'\n')
    spec = importlib.util.spec_from_file_location("triton", tmp_path / "triton.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    found = dispatch._missing("vandermonde", "triton", "cuda", torch.float32)
    assert found is None if reason is None else re.search(reason, str(found))


def test_the_triton_that_is_here_says_its_version() -> None:
    if (spec := importlib.util.find_spec("triton")) is None or spec.origin is None:
        pytest.skip("there is no triton here")
    assert "\n__version__ = " in Path(spec.origin).read_text()
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"triton>={}.{};'.format(*dispatch.OLDEST_TRITON) in declared


def test_the_dtype_is_the_one_that_autocast_leaves() -> None:
    cpu, single = torch.device("cpu"), torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert dispatch._after_autocast("ssm_conv", cpu, single) == torch.bfloat16
        assert dispatch._after_autocast("ssm_conv", cpu, torch.float64) == torch.float64
        assert dispatch._after_autocast("vandermonde", cpu, single) == single
    assert dispatch._after_autocast("ssm_conv", cpu, single) == single


def test_what_kernels_do_not_compute_in_they_compute_in_float32() -> None:
    device = torch.device("cuda", 0)
    assert dispatch.unit("ssm_step_", "cuda", device, torch.bfloat16).precision == "float32"
    assert dispatch.unit("ssm_conv", "cuda", device, torch.bfloat16).precision == "bfloat16"
    assert dispatch.unit("ssm_step_", "cuda", device, torch.complex128).precision == "float64"


@pytest.mark.parametrize("op", ops.operations())
def test_every_op_with_gpu_kernels_is_in_a_proof(op: str) -> None:
    for backend in dispatch.PROVEN_FIRST:
        if backend in dispatch._implementations[op]:
            assert dispatch._unprovable(op, backend) is None
            kinds = dispatch._proofs(op).PRECISIONS
            assert {"float32", "float64"} <= set(kinds)
            assert all(any(case.op == op for case in dispatch.proof_cases(op, kind)) for kind in kinds)
