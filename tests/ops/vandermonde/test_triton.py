"""The Triton kernels of the Vandermonde family against the sums as written: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.ops import second_derivatives
from tests.triton_kernels import device, skip_reason

from . import exact

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.vandermonde import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="vandermonde/triton")

DEVICE = device()
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}  # of the norm
SHAPES = [(1, 1, 1, 1), (1, 2, 3, 5), (3, 2, 17, 65), (1, 1, 5, 4097)]


def data(sets: int, channels: int, N: int, L: int, real: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(sets + 10 * channels + 100 * N + L)
    decay = (6 * torch.rand(channels, N, dtype=torch.float64) - 1) / L  # some grow
    x = torch.complex(-decay, 3 * torch.randn_like(decay))  # up to several turns a step
    v, g = (torch.randn(sets, channels, size, dtype=torch.complex128) for size in (N, L))
    return tuple(t.to(real.to_complex()) for t in (v, x, g))


@pytest.mark.on_ptx
@pytest.mark.parametrize("real", TOLERANCE, ids=str)
@pytest.mark.parametrize("conjugate", [True, False], ids=["pairs", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape: tuple[int, ...], conjugate: bool, real: torch.dtype) -> None:
    v, x, _ = data(*shape, real)
    for power in (0, 2):
        actual = kernels.vandermonde(v.to(DEVICE), x.to(DEVICE), shape[-1], conjugate, power)
        assert actual.dtype == (real if conjugate else real.to_complex())
        assert (
            exact.relative_error(actual, exact.product(v, x, shape[-1], conjugate, power)) < TOLERANCE[real]
        )


@pytest.mark.on_ptx
@pytest.mark.parametrize("real", TOLERANCE, ids=str)
@pytest.mark.parametrize("part", ["real", "complex"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 2, kernels.SEGMENT + 100)], ids=str)
def test_transpose(shape: tuple[int, ...], part: str, real: torch.dtype) -> None:
    _, x, g = data(*shape, real)
    g = g.real.contiguous() if part == "real" else g
    for power in (0, 2):
        actual = kernels.vandermonde_transpose(g.to(DEVICE), x.to(DEVICE), power)
        assert exact.relative_error(actual, exact.transpose(g, x, power)) < TOLERANCE[real]


def test_real_arguments_and_broadcasting() -> None:
    v, x = torch.randn(2, 1, 1, 3, dtype=torch.float64), -torch.rand(1, 4, 3, dtype=torch.float64)
    expected = exact.product(v.expand(2, 1, 4, 3).flatten(1, 2), x[0], 10, False, 0).real.view(2, 1, 4, 10)
    on = v.to(DEVICE), x.to(DEVICE)
    torch.testing.assert_close(kernels.vandermonde(*on, 10, False, 0).cpu(), expected)
    torch.testing.assert_close(kernels.vandermonde(*on, 10, True, 0).cpu(), 2 * expected)
    moments = kernels.vandermonde_transpose(expected.to(DEVICE), x.to(DEVICE), 0)
    exact_moments = exact.transpose(expected.flatten(1, 2), x[0], 0).real.view(2, 1, 4, 3)
    torch.testing.assert_close(moments.cpu(), exact_moments)


def test_empty_dimensions() -> None:
    v, x = torch.randn(2, 0, dtype=torch.complex64, device=DEVICE), torch.randn(0, device=DEVICE)
    assert torch.equal(kernels.vandermonde(v, x, 3, True, 0), torch.zeros(2, 3, device=DEVICE))
    assert kernels.vandermonde(
        torch.ones(1, 2, device=DEVICE), torch.ones(2, device=DEVICE), 0, True, 0
    ).shape == (1, 0)
    moments = kernels.vandermonde_transpose(torch.ones(2, 0, device=DEVICE), torch.ones(3, device=DEVICE), 0)
    assert torch.equal(moments, torch.zeros(2, 3, device=DEVICE))


@pytest.mark.parametrize("rate", [1e-4, 1.0])
def test_float32_keeps_its_digits_at_large_positions(rate: float) -> None:
    """The last 4096 of 2^20 positions, and their moments, by the level the kernels split positions into."""
    N, L = 8, (1 << 20) if DEVICE == "cuda" else (1 << 16)
    torch.manual_seed(0)
    x = exact.hippo_exponents(N, rate).to(torch.complex64)
    v, g = torch.randn(1, 1, N, dtype=torch.complex64), torch.randn(1, 1, L)
    rows, columns = exact.levels(x[0], L >> 8, 1 << 8)
    expected = 2 * torch.einsum("n,ni,nj->ij", v[0, 0].to(torch.complex128), rows, columns).real
    actual = kernels.vandermonde(v.to(DEVICE), x.to(DEVICE), L, True, 0)
    assert exact.relative_error(actual, expected.view(1, 1, L)) < 2e-6
    moments = torch.einsum("ij,ni,nj->n", g.view(L >> 8, 1 << 8).to(torch.complex128), rows, columns)
    actual = kernels.vandermonde_transpose(g.to(DEVICE), x.to(DEVICE), 0)
    assert exact.relative_error(actual, moments.view(1, 1, N)) < 2e-6


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve backend="triton" of the registered ops, on the CPU too."""
    for op in ("vandermonde", "vandermonde_transpose"):
        served = dispatch.Implementation(getattr(kernels, op), lambda device, dtype: None)
        monkeypatch.setitem(dispatch._implementations[op], "triton", served)


@pytest.mark.checks("gradcheck", of="vandermonde/triton")
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("conjugate", [True, False], ids=["pairs", "plain"])
def test_first_and_second_derivatives(conjugate: bool) -> None:
    """Of the product; its derivatives are the transpose and the product again."""
    torch.manual_seed(0)
    v, x = torch.randn(1, 1, 2, dtype=torch.complex128), torch.randn(1, 2, dtype=torch.complex128) / 2

    def product(backend: str) -> Any:
        return lambda v, x: torch.ops.sequence_kernels.vandermonde.default(v, x, 3, conjugate, 0, backend)

    arguments = [t.to(DEVICE).requires_grad_() for t in (v, x)]
    assert gradcheck(product("triton"), arguments, fast_mode=True)
    second_derivatives.assert_those_of_torch(product, arguments, "triton")
