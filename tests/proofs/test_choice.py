"""What is asked of proofs: for which tensors, which precision; and that every op with GPU kernels has some."""

from __future__ import annotations

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
