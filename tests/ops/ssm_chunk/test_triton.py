"""Chunk matrices by the Triton kernels, interpreted or compiled on a GPU, against dense matrices multiplied out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_kernels import compiled, device, skip_reason

from .exact import assert_matrices, error, gradients_by_torch, gradients_for, system

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

import triton

from sequence_kernels.ops.ssm_chunk import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="ssm_chunk/triton")

DEVICE = device()
TOLERANCE = {torch.complex64: 5e-7, torch.complex128: 1e-14}  # of the norm
#: Channels, rank, heads, pairs, chunk, all powers: powers of more than a tile, and of more than 16 terms.
CASES = [
    (1, 1, 2, 5, 4, False),
    (2, 0, 1, 5, 4, True),
    (1, 1, 1, 33, 4, True),
    (1, 1, 1, 2, 32, False),
    (3, 3, 1, 2, 4, True),
    (1, 0, 1, 3, 1, False),
]


def inputs(channels: int, rank: int, heads: int, pairs: int, dtype: torch.dtype) -> list[Tensor]:
    *wide, c = system(rank, heads, pairs, channels)
    return [*wide, c.to(dtype)]


def moved(tensors: Any, to: str) -> list[Tensor]:
    return [t.to(to) for t in tensors]


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matrices_and_gradients(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    check(case, dtype)


def check(case: tuple[Any, ...], dtype: torch.dtype) -> None:
    *sizes, chunk, tail = case
    given = inputs(*sizes, dtype)
    results = moved(kernels.ssm_chunk(*moved(given, DEVICE), chunk, tail), "cpu")
    assert_matrices(results, given, chunk, tail, TOLERANCE[dtype])
    gradients = gradients_for(results)
    got = kernels.ssm_chunk_backward(*moved(gradients, DEVICE), *moved(given, DEVICE), chunk, tail)
    for one, other, like in zip(got, gradients_by_torch(gradients, given, chunk, tail), given, strict=True):
        assert (one.shape, one.dtype) == (like.shape, like.dtype)
        assert error(one.cpu(), other) < TOLERANCE[dtype]


def filled(channels: int, rank: int, heads: int, pairs: int, less: int) -> tuple[int, int, int, int]:
    """Such sizes for the same kernels, that fill a program; or so many fewer."""
    sequences = triton.next_power_of_2(1 + channels + 2 * rank)
    most = [triton.next_power_of_2(x) if x else 0 for x in (rank, pairs)]
    rank, pairs = (max(x - less, x // 2 + 1 if x > 1 else x) for x in most)
    rest = sequences - 1 - 2 * rank
    return max(rest - less, sequences // 2 - 2 * rank, 1), rank, heads, pairs


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiles_that_are_filled(
    case: tuple[Any, ...], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """And almost; of several heads, and with powers of fewer terms than a program adds up at a time."""
    *sizes, chunk, tail = case
    channels, rank, _, pairs = sizes
    for less in range(4 if compiled(request) else 1):
        check((*filled(*sizes, less), chunk, tail), dtype)
    check((channels, rank, 2, pairs, min(chunk, 8), tail), dtype)


@pytest.mark.launches_nothing
def test_no_heads() -> None:
    *wide, c = inputs(1, 1, 0, 3, torch.complex64)
    results = kernels.ssm_chunk(*moved((*wide, c), DEVICE), 4, True)
    assert [r.shape for r in results] == [(1, 0, 4), (1, 0, 4, 6), (0, 4, 6), (0, 3, 6, 6)]
    assert [g.numel() for g in kernels.ssm_chunk_backward(*results, *moved((*wide, c), DEVICE), 4, True)] == [
        0
    ] * 5
