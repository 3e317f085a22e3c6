"""The Triton kernels of the discretisation, interpreted or compiled on a GPU, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels.ops.dispatch import implementation
from tests.triton_kernels import device, skip_reason

from .test_dplr_discretize import C64, C128, SIZES, assert_adjoint, parameters

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops.dplr_discretize import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="dplr_discretize/triton")

DEVICE = device()


def moved(arguments: Any, to: str) -> list[Any]:
    return [a.to(to) if isinstance(a, Tensor) else a for a in arguments]


def backward(*arguments: Any) -> list[Tensor]:
    return moved(kernels.dplr_discretize_backward(*moved(arguments, DEVICE)), "cpu")


def case(copies: int, pairs: int, rank: int, heads: int) -> Any:
    """Of the test below: fewer heads than elsewhere, and none to launch for is marked."""
    size = (copies, pairs, rank, heads if heads < 40 else 3)
    return pytest.param(size, id=str(size), marks=[] if heads else pytest.mark.launches_nothing)


@pytest.mark.on_ptx
@pytest.mark.parametrize(("given", "wide"), [(C64, True), (C128, False), (C128, True)])
@pytest.mark.parametrize("size", [case(*s) for s in SIZES])
def test_results_and_gradients(size: tuple[int, int, int, int], given: torch.dtype, wide: bool) -> None:
    inputs = parameters(*size, given)
    want = implementation("dplr_discretize", "torch")(*inputs, wide)
    for got, expected in zip(kernels.dplr_discretize(*moved(inputs, DEVICE), wide), want, strict=True):
        assert got.dtype == expected.dtype
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=(1e-14 if wide else 1e-7) * scale)
    assert_adjoint(backward, inputs, wide, 1e-13)
