"""The Triton kernels of the discretisation, interpreted or compiled on a GPU, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_kernels import device, skip_reason

from .test_diagonal_discretize import KINDS, SIZES, assert_adjoint, assert_results, parameters

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops.diagonal_discretize import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="diagonal_discretize/triton")

DEVICE = device()


def moved(arguments: Any, to: str) -> list[Any]:
    return [a.to(to) if isinstance(a, Tensor) else a for a in arguments]


def forward(*arguments: Any) -> list[Tensor]:
    return moved(kernels.diagonal_discretize(*moved(arguments, DEVICE)), "cpu")


def backward(*arguments: Any) -> list[Tensor]:
    return moved(kernels.diagonal_discretize_backward(*moved(arguments, DEVICE)), "cpu")


def case(copies: int, pairs: int, heads: int) -> Any:
    """Of the test below: fewer heads than elsewhere, and none to launch for is marked."""
    size = (copies, pairs, heads if heads < 40 else 3)
    return pytest.param(size, id=str(size), marks=[] if pairs and heads else pytest.mark.launches_nothing)


@pytest.mark.on_ptx
@pytest.mark.parametrize(("given", "wide", "bilinear"), KINDS)
@pytest.mark.parametrize("size", [case(*s) for s in SIZES])
def test_results_and_gradients(
    size: tuple[int, int, int], given: torch.dtype, wide: bool, bilinear: bool
) -> None:
    inputs = parameters(*size, given)
    assert_results(forward, inputs, bilinear, wide)
    assert_adjoint(backward, inputs, bilinear, wide)
