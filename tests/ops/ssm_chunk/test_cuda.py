"""Chunk matrices on the stand-in driver, host code and CUDA kernels, against dense matrices multiplied out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from tests.cuda_driver import ORDERS, driver, skip_reason

from .exact import assert_matrices, error, gradients_by_torch, gradients_for, system

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="ssm_chunk/cuda"),
]

DTYPES = {"f32": torch.complex64, "f64": torch.complex128}
TOLERANCE = {"f32": 5e-7, "f64": 1e-14}  # of the norm
#: Channels, rank, heads, pairs, chunk, all powers. M in one and in four tiles, sums over 16 and over 8 steps, pulls in
#: one group and in two.
CASES = [
    (1, 1, 2, 5, 8, False),
    (2, 0, 2, 5, 8, True),
    (1, 1, 1, 33, 32, True),
    (5, 2, 2, 3, 16, True),
    (1, 3, 1, 4, 16, False),
    (1, 5, 1, 4, 16, True),
    (1, 1, 3, 1, 1, True),
    (1, 0, 2, 40, 4, False),
    (1, 0, 1, 3, 1, True),
]
SMALL = [(1, 1, 1, 3, 8, True), (2, 0, 1, 3, 4, True), (1, 5, 1, 2, 4, False)]


def inputs(channels: int, rank: int, heads: int, pairs: int, kind: str) -> list[Tensor]:
    *wide, c = system(rank, heads, pairs, channels)
    return [*wide, c.to(DTYPES[kind])]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    given = inputs(1, 1, 2, 3, "f32")
    yield "ssm_chunk", [*given, 4, True]
    results = ops.ssm_chunk(*given, 4, backend="torch")
    gradients = gradients_for([results[0], results[1].mT, *results[2:]])
    yield "ssm_chunk_backward", [*gradients, *given, 4, True]


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matrices_and_gradients(case: tuple[Any, ...], kind: str) -> None:
    *sizes, chunk, tail = case
    check(inputs(*sizes, kind), chunk, tail, TOLERANCE[kind])


def check(given: list[Tensor], chunk: int, tail: bool, tolerance: float, **options: Any) -> None:
    results = driver().run("ssm_chunk", *given, chunk, tail, **options)
    assert_matrices(results, given, chunk, tail, tolerance)
    gradients = gradients_for(results)
    got = driver().run("ssm_chunk_backward", *gradients, *given, chunk, tail, **options)
    for one, other in zip(got, gradients_by_torch(gradients, given, chunk, tail), strict=True):
        assert one.shape == other.shape
        assert error(one, other) < tolerance


@pytest.mark.checks("sanitizers", of="ssm_chunk/cuda")
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(kind: str, order: str) -> None:
    for *sizes, chunk, tail in SMALL:
        check(inputs(*sizes, kind), chunk, tail, TOLERANCE[kind], check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(kind: str, order: str, seed: int) -> None:
    for *sizes, chunk, tail in SMALL:
        check(inputs(*sizes, kind), chunk, tail, TOLERANCE[kind], check=True, order=order, seed=seed)


def test_results_do_not_depend_on_the_order_of_threads() -> None:
    given = inputs(2, 2, 1, 5, "f32")
    runs = []
    for order in ORDERS:
        results = driver().run("ssm_chunk", *given, 16, True, order=order, seed=5)
        found = driver().run("ssm_chunk_backward", *results, *given, 16, True, order=order, seed=5)
        runs.append((*results, *found))
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(run, runs[0], strict=True))


def test_one_launch_each_way() -> None:
    """A head has a block, and forward one more for each 64 x 64 numbers of a power."""
    driver().record()
    for pairs, rank, blocks, shared in ((32, 1, 2, 4096), (33, 1, 5, 4224), (5, 0, 1, 640)):
        given = inputs(1, rank, 3, pairs, "f32")
        results = driver().run("ssm_chunk", *given, 2, False)
        driver().run("ssm_chunk_backward", *results, *given, 2, False)
        forward, backward = driver().launches()
        assert forward.startswith(f"ssm_chunk_f32 grid {3 * blocks} block 128 shared {shared} ")
        assert backward.startswith("ssm_chunk_backward_f32 grid 3 block 128 ")
    none = [t[..., :0, :].contiguous() if t.dim() == 3 else t[:0] for t in given]
    assert [r.numel() for r in driver().run("ssm_chunk", *none, 2, False)] == [0] * 4
    assert driver().launches() == []


def test_near_one_the_powers_keep_their_digits() -> None:
    """A slow model, c in complex64: A^32 - I has an error of a rounding to float32, not A^32."""
    a, p, q, b, c = system(1, 1, 16, 1)
    a = 1 + 1e-4 * (a - 1)
    given = [a, 1e-2 * p, 1e-2 * q, b, c.to(torch.complex64)]
    powers = driver().run("ssm_chunk", *given, 32, False)[3]
    want = ops.ssm_chunk(*given[:4], c, 32, tail=False, backend="torch")[3]
    eye = torch.eye(32, dtype=torch.float64)
    assert error(powers - eye, want - eye) < 1e-7
