"""The Triton kernels of the Cauchy family against the sums as written: interpreted, or compiled on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.ops import second_derivatives
from tests.triton_kernels import compiled, device, skip_reason

from . import exact

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.cauchy import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="cauchy/triton")

DEVICE = device()
TOLERANCE = {torch.complex64: 2e-6, torch.complex128: 1e-12}  # of the norm
SHAPES = [(1, 1, 1, 2), (2, 2, 3, 5), (5, 2, 9, 129), (1, 2, 20, 200)]


def data(sets: int, channels: int, N: int, L: int, dtype: torch.dtype, imaginary: bool) -> tuple[Tensor, ...]:
    """v, z (one row for all channels, its last node infinite if imaginary), w and g."""
    torch.manual_seed(sets + 10 * channels + 100 * N + L)
    w = torch.complex(
        -torch.rand(channels, N, dtype=torch.float64) - 0.1, 10 * torch.randn(channels, N).double()
    )
    z = exact.nodes(L) if imaginary else torch.randn(L, dtype=torch.complex128)
    v, g = (torch.randn(sets, channels, size, dtype=torch.complex128) for size in (N, L))
    return tuple(t.to(dtype) for t in (v, z[None], w, g))


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape: tuple[int, ...], pairs: bool, dtype: torch.dtype) -> None:
    for imaginary, order in ((True, 1), (False, 3)):
        v, z, w, _ = data(*shape, dtype, imaginary)
        actual = kernels.cauchy(v.to(DEVICE), z.to(DEVICE), w.to(DEVICE), pairs, order)
        assert actual.dtype == dtype
        assert exact.relative_error(actual, exact.product(v, z, w, pairs, order)) < TOLERANCE[dtype]
        if imaginary:
            assert (actual[..., -1] == 0).all()


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 3, kernels.SEGMENT + 100)], ids=str)
def test_transpose(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for imaginary, order in ((True, 1), (False, 2)):
        _, z, w, g = data(*shape, dtype, imaginary)
        actual = kernels.cauchy_transpose(g.to(DEVICE), z.to(DEVICE), w.to(DEVICE), False, order)
        assert exact.relative_error(actual, exact.transpose(g, z, w, order)) < TOLERANCE[dtype]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sets", [1, 2, 4])
def test_tiles_that_are_filled(sets: int, dtype: torch.dtype, request: pytest.FixtureRequest) -> None:
    """And almost, so that sizes end at each element of a thread; channels with nodes of their own."""
    for less in range(5 if compiled(request) else 1):
        v, z, w, g = data(max(sets - less % 2, sets // 2 + 1), 2, 16 - less, 256 - less, dtype, False)
        z = torch.cat((z, -z))
        on = [t.to(DEVICE) for t in (v, z, w, g)]
        for order in (1, 2):
            actual = kernels.cauchy_transpose(on[3], *on[1:3], False, order)
            assert exact.relative_error(actual, exact.transpose(g, z, w, order)) < TOLERANCE[dtype]
            for pairs in (True, False):
                actual = kernels.cauchy(*on[:3], pairs, order)
                assert exact.relative_error(actual, exact.product(v, z, w, pairs, order)) < TOLERANCE[dtype]
    z[:, ::2] *= 2.0**70  # whose squares are no numbers of float32, beside others
    on[1] = z.to(DEVICE)
    actual = kernels.cauchy_transpose(on[3], *on[1:3], False, 1)
    assert exact.relative_error(actual, exact.transpose(g, z, w, 1)) < TOLERANCE[dtype]
    for pairs in (True, False):
        actual = kernels.cauchy(*on[:3], pairs, 1)
        assert exact.relative_error(actual, exact.product(v, z, w, pairs, 1)) < TOLERANCE[dtype]
    infinite = torch.full_like(on[1], math.inf)
    assert not any(kernels.cauchy(on[0], infinite, on[2], pairs, 1).any() for pairs in (True, False))


@pytest.mark.on_ptx
@pytest.mark.parametrize(("pairs", "size"), [(True, 2.0**70), (False, 2.0**-70)])
def test_float32_whose_squares_are_no_numbers(pairs: bool, size: float) -> None:
    """Such distances are computed in double. In full tiles."""
    v, z, w, g = data(4, 1, 9, 130, torch.complex64, False)
    actual = kernels.cauchy((v * size).to(DEVICE), (z * size).to(DEVICE), (w * size).to(DEVICE), pairs, 1)
    assert exact.relative_error(actual, exact.product(v, z, w, pairs, 1)) < 2e-6
    if pairs:
        actual = kernels.cauchy_transpose(
            (g * size).to(DEVICE), *(t.to(DEVICE) * size for t in (z, w)), False, 1
        )
        assert exact.relative_error(actual, exact.transpose(g, z, w, 1)) < 2e-6


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_infinite_nodes_are_left_out(dtype: torch.dtype) -> None:
    v, z, w, g = (t.to(DEVICE) for t in data(1, 1, 3, 200, dtype, False))
    for infinite in (complex(math.inf, 1), complex(1, -math.inf)):
        z = torch.full_like(z, infinite)
        assert not kernels.cauchy(v, z, w, True, 1).any()
        assert not kernels.cauchy_transpose(g, z, w, False, 1).any()


def test_nodes_of_their_own_for_each_channel() -> None:
    v, _, w, g = data(2, 3, 4, 50, torch.complex128, False)
    z = torch.randn(3, 50, dtype=torch.complex128)
    actual = kernels.cauchy(v.to(DEVICE), z.to(DEVICE), w.to(DEVICE), True, 1)
    assert exact.relative_error(actual, exact.product(v, z, w, True, 1)) < 1e-12
    actual = kernels.cauchy_transpose(g.to(DEVICE), z.to(DEVICE), w.to(DEVICE), False, 1)
    assert exact.relative_error(actual, exact.transpose(g, z, w, 1)) < 1e-12


def test_real_arguments_and_broadcasting() -> None:
    v, w = torch.randn(2, 1, 3, dtype=torch.float64), -torch.rand(4, 3, dtype=torch.float64)
    z = torch.rand(10, dtype=torch.float64) + 0.1
    expected = exact.product(v.expand(2, 4, 3), z[None], w, False, 1).real
    on = v.to(DEVICE), z.to(DEVICE), w.to(DEVICE)
    torch.testing.assert_close(kernels.cauchy(*on, False, 1).cpu(), expected)
    torch.testing.assert_close(kernels.cauchy(*on, True, 1).cpu(), 2 * expected)


def test_empty_dimensions() -> None:
    v, w = torch.ones(2, 0, device=DEVICE), torch.ones(0, device=DEVICE)
    z = torch.ones(3, device=DEVICE)
    assert torch.equal(kernels.cauchy(v, z, w, True, 1), torch.zeros(2, 3, device=DEVICE))
    assert kernels.cauchy(torch.ones(2, device=DEVICE), w, torch.ones(2, device=DEVICE), True, 1).shape == (
        0,
    )
    assert torch.equal(kernels.cauchy_transpose(v, w, z, False, 1), torch.zeros(2, 3, device=DEVICE))


@pytest.mark.parametrize("rate", [1e-4, 1.0])
def test_float32_next_to_the_imaginary_axis(rate: float) -> None:
    """float32 inputs, poles of a HiPPO model and nodes up to infinity: 2e-6 of the norm."""
    N, L = 32, 513
    torch.manual_seed(0)
    w = (rate * torch.complex(torch.full((1, N), -0.5), torch.pi * torch.arange(N)[None])).to(torch.complex64)
    z = exact.nodes(L)[None].to(torch.complex64)
    v, g = torch.randn(1, 1, N, dtype=torch.complex64), torch.randn(1, 1, L, dtype=torch.complex64)
    actual = kernels.cauchy(v.to(DEVICE), z.to(DEVICE), w.to(DEVICE), True, 1)
    assert exact.relative_error(actual, exact.product(v, z, w, True, 1)) < 2e-6
    actual = kernels.cauchy_transpose(g.to(DEVICE), z.to(DEVICE), w.to(DEVICE), False, 1)
    assert exact.relative_error(actual, exact.transpose(g, z, w, 1)) < 2e-6


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve backend="triton" of the registered ops, on the CPU too."""
    for op in ("cauchy", "cauchy_transpose"):
        served = dispatch.Implementation(getattr(kernels, op), lambda device, dtype: None)
        monkeypatch.setitem(dispatch._implementations[op], "triton", served)


@pytest.mark.checks("gradcheck", of="cauchy/triton")
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("conjugate", [True, False], ids=["pairs", "plain"])
def test_first_and_second_derivatives(conjugate: bool) -> None:
    """Of the product; its derivatives are the transpose and the product again."""
    torch.manual_seed(0)
    v, z, w = (torch.randn(*shape, dtype=torch.complex128) for shape in ((1, 1, 2), (3,), (1, 2)))
    z, w = torch.complex(z.real.abs() + 0.5, z.imag), torch.complex(-w.real.abs() - 0.5, w.imag)

    def product(backend: str) -> Any:
        return lambda v, z, w: torch.ops.sequence_kernels.cauchy.default(v, z, w, conjugate, 1, backend)

    arguments = [t.to(DEVICE).requires_grad_() for t in (v, z, w)]
    assert gradcheck(product("triton"), arguments, fast_mode=True)
    second_derivatives.assert_those_of_torch(product, arguments, "triton")
