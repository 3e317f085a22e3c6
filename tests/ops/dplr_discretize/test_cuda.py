"""The discretisation on the stand-in driver, host code and CUDA kernels, against plain torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dispatch import implementation
from tests.cuda_driver import ORDERS, driver, skip_reason

from .test_dplr_discretize import C64, C128, LARGE, PIVOTED, SIZES, assert_adjoint, parameters

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="dplr_discretize/cuda"),
]

KINDS = [(C64, True), (C64, False), (C128, True), (C128, False)]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    given = parameters(1, 3, 2, 5)
    yield "dplr_discretize", [*given, True]
    yield "dplr_discretize_backward", [*ops.dplr_discretize(*given, backend="torch"), *given, True]


def check(inputs: tuple[Tensor, ...], wide: bool, **options: Any) -> None:
    want = implementation("dplr_discretize", "torch")(*inputs, wide)
    for got, expected in zip(driver().run("dplr_discretize", *inputs, wide, **options), want, strict=True):
        assert got.dtype == expected.dtype
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(got, expected, rtol=0, atol=(1e-14 if wide else 1e-7) * scale)
    assert_adjoint(
        functools.partial(driver().run, "dplr_discretize_backward", **options), inputs, wide, 1e-13
    )


@pytest.mark.parametrize("size", [*SIZES, *PIVOTED], ids=str)
def test_results_and_gradients(size: tuple[int, int, int, int]) -> None:
    for given, wide in KINDS:
        check(parameters(*size, given, LARGE if size in PIVOTED else 1.0), wide)


@pytest.mark.checks("sanitizers", of="dplr_discretize/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(order: str) -> None:
    for size in ((1, 3, 2, 5), (2, 34, 0, 2)):
        check(parameters(*size), True, check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(order: str, seed: int) -> None:
    for size in ((1, 3, 2, 5), (2, 34, 0, 2)):
        for given, wide in KINDS:
            check(parameters(*size, given), wide, check=True, order=order, seed=seed)


def test_launches() -> None:
    """One each way, and one more where heads share copies; none without heads."""
    for size, launches in (((5, 3, 1, 5), 1), ((1, 3, 1, 5), 2), ((1, 3, 1, 0), 1)):
        given = parameters(*size)
        driver().record()
        results = driver().run("dplr_discretize", *given, True)
        assert len(driver().launches()) == (size[3] > 0)
        driver().run("dplr_discretize_backward", *results, *given, True)
        assert len(driver().launches()) == launches
