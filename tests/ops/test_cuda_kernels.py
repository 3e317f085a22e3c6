"""Every CUDA kernel, launched on a GPU in a few small calls: what compute-sanitizer watches."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sequence_kernels import native

from .devices import run

pytestmark = [pytest.mark.gpu, pytest.mark.checks("GPU", of="*/cuda")]


CALLS = {
    name: call
    for path in sorted(Path(__file__).parent.glob("*/test_cuda.py"))
    for name, call in importlib.import_module(f"{__package__}.{path.parent.name}.test_cuda").ON_GPU.items()
}


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("call", CALLS)
def test_kernels_that_compute_sanitizer_watches(call: str, wide: bool, tolerance: float) -> None:
    if (reason := native.unavailable("cuda")) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    op, arguments, options = CALLS[call]
    made = [
        a if wide or not isinstance(a, Tensor) else a.to(torch.complex64 if a.is_complex() else torch.float32)
        for a in arguments()
    ]
    exact = [
        a.to(torch.complex128 if a.is_complex() else torch.float64) if isinstance(a, Tensor) else a
        for a in made
    ]
    expected = op(*exact, backend="torch", **options)
    got = run(op, *made, backend="cuda", **options)
    assert float((got - expected).norm()) < tolerance * float(expected.norm())
