"""The instruction sets that the C++ kernels are compiled for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

#: By the numbers that `limit_instruction_set` takes. The last is the third but for what multiplies bfloat16 numbers.
NAMES = ("generic", "avx2", "avx512", "avx512_bf16")
#: Those that every kernel is compiled for.
OF_ALL = NAMES[:3]


def limit(level: int) -> int:
    """No higher one from now on; what this machine has of it."""
    return int(torch.ops.sequence_kernels_native.limit_instruction_set(level))


@contextmanager
def limited_to(level: int) -> Iterator[None]:
    """No higher one while it holds; the test is skipped where the machine does not have that one."""
    try:
        if limit(level) != level:
            pytest.skip(f"this machine does not have {NAMES[level]}")
        yield
    finally:
        limit(len(NAMES) - 1)


def available(names: Sequence[str] = NAMES) -> Iterator[int]:
    """Those of them that this machine has, each while it is at hand."""
    best = limit(len(NAMES) - 1)
    for level in map(NAMES.index, names):
        if level <= best:
            with limited_to(level):
                yield level


def rounds_matrices(backend: str, dtype: torch.dtype) -> bool:
    """Whether a convolution of that type multiplies matrices rounded to bfloat16 there, by the last of them."""
    return backend == "cpu" and dtype == torch.bfloat16 and limit(len(NAMES) - 1) == len(NAMES) - 1


@pytest.fixture(params=range(len(OF_ALL)), ids=OF_ALL)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each that every kernel is compiled for."""
    with limited_to(request.param):
        yield request.param
