"""Tiny and huge weights, nodes, poles and distances: every kernel against the sums in a wider range.

The error is relative to the sum of the terms' magnitudes, wherever that is a normal float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import native, ops
from tests import cuda_driver, triton_kernels

from . import extremes
from .test_cuda import Device

Run = Callable[[Tensor, Tensor, Tensor, bool, int], Tensor]


def _cpu() -> tuple[Run, Run]:
    from sequence_kernels.ops.cauchy import cpu

    return cpu.cauchy, cpu.cauchy_transpose


def _cuda() -> tuple[Run, Run]:
    from sequence_kernels.ops.cauchy.reference import both_of_pairs

    device = Device(check=False)

    def transpose(g: Tensor, z: Tensor, w: Tensor, pairs: bool, order: int) -> Tensor:
        if pairs:
            g, z = both_of_pairs(g, z)
        return device.transpose(g, z, w, order)

    return lambda v, z, w, pairs, order: device.product(v, z, w, pairs, order), transpose


def _triton() -> tuple[Run, Run]:
    from sequence_kernels.ops.cauchy import triton

    def on_device(kernel: Any) -> Run:
        device = triton_kernels.device()
        return lambda weight, z, w, pairs, order: kernel(
            weight.to(device), z.to(device), w.to(device), pairs, order
        )

    return on_device(triton.cauchy), on_device(triton.cauchy_transpose)


KERNELS = [
    pytest.param(
        make,
        id=name,
        marks=[
            pytest.mark.skipif(reason is not None, reason=str(reason)),
            pytest.mark.checks("oracle", of=f"cauchy/{name}"),
        ],
    )
    for name, make, reason in (
        ("cpu", _cpu, native.unavailable("cpu")),
        ("cuda", _cuda, cuda_driver.skip_reason()),
        ("triton", _triton, triton_kernels.skip_reason()),
    )
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in Triton's interpreter
@pytest.mark.parametrize("kernels", KERNELS)
def test_numbers_of_every_size(kernels: Callable[[], tuple[Run, Run]]) -> None:
    product, transpose = kernels()
    for seed in range(15):
        order = (1, 1, 2, 3, 4)[seed % 5]
        v, z, w, g = extremes.draw(3, 1, 5, 36, seed)
        for pairs in (True, False):
            got, want = product(v, z, w, pairs, order), extremes.product(v, z, w, pairs, order)
            assert extremes.worst(got, want) < extremes.TOLERANCE, (seed, pairs)
            got, want = transpose(g, z, w, pairs, order), extremes.transpose(g, z, w, pairs, order)
            assert extremes.worst(got, want) < extremes.TOLERANCE, (seed, pairs)


def complex64(*values: complex) -> Tensor:
    return torch.tensor([values], dtype=torch.complex64)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_tiny_pole_a_huge_one_and_one_where_infinite_nodes_are_put(
    kernels: Callable[[], tuple[Run, Run]],
) -> None:
    product, transpose = kernels()
    got = product(complex64(1)[None], complex64(0), complex64(-1e-10 + 1e-10j), True, 1)
    torch.testing.assert_close(got.cpu(), complex64(1e10)[None])
    got = transpose(complex64(1e-15)[None], complex64(0), complex64(-1e7 + 1e7j), True, 1)
    torch.testing.assert_close(got.cpu(), complex64(1e-22 + 1e-22j)[None], rtol=1e-6, atol=0)
    for pole in (1e9, 2.0**60, 2.0**60 * 1j):
        got = transpose(
            complex64(1, 1)[None], complex64(complex(0, float("inf")), 1), complex64(pole), False, 1
        )
        torch.testing.assert_close(got.cpu(), 1 / (1 - complex64(pole))[None], rtol=1e-6, atol=0)


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu")))
def test_float64() -> None:
    """The CPU's float64 too, down and up to powers of two of about 960."""
    one = torch.tensor([1.0], dtype=torch.complex128)
    for exponent in (-900, -300, 300, 900):
        pole, weight = one * 2.0**exponent * (1j - 1), one * 2.0 ** (exponent // 2)
        want = 2.0 ** (exponent // 2 - exponent)
        got = ops.cauchy(weight, 0 * one, pole, backend="cpu")
        torch.testing.assert_close(got, one * want, rtol=1e-14, atol=0)
        got = ops.cauchy_transpose(weight, 0 * one, pole, conjugate=True, backend="cpu")
        torch.testing.assert_close(got, one * want * (1 + 1j), rtol=1e-14, atol=0)
