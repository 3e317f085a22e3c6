"""The discretisation on the stand-in driver, host code and CUDA kernels, against plain torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from sequence_kernels import ops
from tests.cuda_driver import ORDERS, driver, skip_reason

from .test_diagonal_discretize import KINDS, SIZES, assert_adjoint, assert_results, parameters

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="diagonal_discretize/cuda"),
]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    given = parameters(1, 3, 5)
    yield "diagonal_discretize", [*given, False, True]
    results = ops.diagonal_discretize(*given, backend="torch")
    yield "diagonal_discretize_backward", [*results, *given, False, True]


def check(size: tuple[int, int, int], given: Any, wide: bool, bilinear: bool, **options: Any) -> None:
    inputs = parameters(*size, given)
    run = functools.partial(driver().run, **options)
    assert_results(functools.partial(run, "diagonal_discretize"), inputs, bilinear, wide)
    assert_adjoint(functools.partial(run, "diagonal_discretize_backward"), inputs, bilinear, wide)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results_and_gradients(size: tuple[int, int, int]) -> None:
    for kind in KINDS:
        check(size, *kind)


@pytest.mark.checks("sanitizers", of="diagonal_discretize/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(order: str) -> None:
    for size in ((1, 3, 5), (2, 34, 2)):
        check(size, *KINDS[-1], check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(order: str, seed: int) -> None:
    for size in ((1, 3, 5), (2, 34, 2)):
        for kind in KINDS:
            check(size, *kind, check=True, order=order, seed=seed)


def test_launches() -> None:
    """One each way, and two more where heads share copies."""
    for size, launches in (((5, 3, 5), 1), ((1, 3, 5), 3)):
        given = parameters(*size)
        driver().record()
        results = driver().run("diagonal_discretize", *given, False, True)
        assert len(driver().launches()) == 1
        driver().run("diagonal_discretize_backward", *results, *given, False, True)
        assert len(driver().launches()) == launches
