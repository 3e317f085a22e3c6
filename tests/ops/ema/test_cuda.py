"""Exponential moving sums on the stand-in driver, host code and CUDA kernels, against plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sequence_kernels import ops
from sequence_kernels.ops.ema import reference
from tests.cuda_driver import driver, skip_reason

from ..sample import real

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", "sanitizers", of="ema/cuda"),
]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    u, a = real(2, 70, 9), 0.5 * real(70, seed=1)
    yield "ema", [u, a]
    yield "ema_backward", [real(2, 70, 9, seed=2), u, a]


#: Calls of the op in which each kernel is launched.
ON_GPU = {
    "ema": (ops.ema, lambda: [real(2, 70, 9), 0.5 * real(70, seed=1)], {}),
    "ema_gradient": (
        lambda u, a, **options: torch.func.grad(lambda *t: ops.ema(*t, **options).square().sum(), 1)(u, a),
        lambda: [real(2, 70, 9), 0.5 * real(70, seed=1)],
        {},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", ["forward", "random"])
def test_against_plain_torch(dtype: torch.dtype, order: str) -> None:
    (_, given), (_, given_backward) = calls()
    given, given_backward = ([t.to(dtype) for t in ts] for ts in (given, given_backward))
    torch.testing.assert_close(
        driver().run("ema", *given, check=True, order=order, seed=1), reference.ema(*given)
    )
    found = driver().run("ema_backward", *given_backward, check=True, order=order, seed=1)
    for got, want in zip(found, reference.ema_backward(*given_backward), strict=True):
        torch.testing.assert_close(got, want)
