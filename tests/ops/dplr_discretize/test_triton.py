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

import triton

from sequence_kernels.ops.dplr_discretize import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="dplr_discretize/triton")

DEVICE = device()


def filled(size: int) -> int:
    """A block of such a size."""
    return triton.next_power_of_2(max(1, size))


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
    compare(size, given, wide)


@pytest.mark.thorough
@pytest.mark.parametrize(("given", "wide"), [(C64, True), (C128, False), (C128, True)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("pairs", "rank"), dict.fromkeys((filled(n), filled(rank)) for _, n, rank, heads in SIZES if heads)
)
def test_tiles_that_are_filled(pairs: int, rank: int, shared: bool, given: torch.dtype, wide: bool) -> None:
    """By all pairs and all ranks."""
    compare((2, pairs, rank, 4 if shared else 2), given, wide)


def compare(size: tuple[int, int, int, int], given: torch.dtype, wide: bool) -> None:
    inputs = parameters(*size, given)
    want = implementation("dplr_discretize", "torch")(*inputs, wide)
    for got, expected in zip(kernels.dplr_discretize(*moved(inputs, DEVICE), wide), want, strict=True):
        assert got.dtype == expected.dtype
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=(1e-14 if wide else 1e-7) * scale)
    assert_adjoint(backward, inputs, wide, 1e-13)
