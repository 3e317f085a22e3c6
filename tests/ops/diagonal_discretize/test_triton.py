"""The Triton kernels of the discretisation, interpreted or compiled on a GPU, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_kernels import device, skip_reason

from .test_diagonal_discretize import C64, C128, KINDS, SIZES, assert_adjoint, assert_results, parameters

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

import triton

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


@pytest.mark.thorough
@pytest.mark.parametrize(("given", "wide", "bilinear"), KINDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pairs", dict.fromkeys(triton.next_power_of_2(n) for _, n, _ in SIZES if n))
def test_tiles_that_are_filled(
    pairs: int, shared: bool, given: torch.dtype, wide: bool, bilinear: bool
) -> None:
    """And of which a part is left out: by all numbers, small and large, of several heads."""
    for n in dict.fromkeys((pairs, pairs // 2 + 1)):
        inputs = parameters(5, n, 10 if shared else 5, given)
        assert_results(forward, inputs, bilinear, wide)
        assert_adjoint(backward, inputs, bilinear, wide)


@pytest.mark.thorough
@pytest.mark.parametrize("pairs", [1, 3, 5, 9, 133])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("given", [C64, C128])
@pytest.mark.parametrize("wide", [False, True])
def test_many_turns_in_a_step(pairs: int, heads: int, given: torch.dtype, wide: bool) -> None:
    """Of angles of 1e6 all digits are those of the number."""
    _, b, dt = parameters(2, pairs, heads, given)
    turns = torch.complex(-torch.rand(2, pairs), 1e6 + 1e5 * torch.randn(2, pairs)).to(given)
    inputs = turns, b, torch.ones_like(dt)
    assert_results(forward, inputs, False, wide)
    assert_adjoint(backward, inputs, False, wide)
