"""The Vandermonde products on the stand-in driver, host code and CUDA kernels, against the sums as written."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda_driver import ORDERS, driver, skip_reason
from tests.cuda_emulator import Kernels

from . import exact

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="vandermonde/cuda"),
]

REAL = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 2e-6, "f64": 1e-12}  # of the norm
SEGMENT = 16384
SHAPES = [(1, 1, 1, 1), (1, 2, 3, 5), (3, 2, 5, 64), (2, 1, 17, 65), (9, 1, 2, 200), (1, 1, 33, 4097)]


class Device:
    """The two products as the host launches them, with each access checked or not."""

    def __init__(self, check: bool) -> None:
        self._run = functools.partial(driver().run, check=check)

    def product(self, v: Tensor, x: Tensor, L: int, conjugate: bool, power: int, **options: Any) -> Tensor:
        return self._run("vandermonde", v, x, L, conjugate, power, **options)

    def transpose(self, g: Tensor, x: Tensor, power: int, **options: Any) -> Tensor:
        return self._run("vandermonde_transpose", g, x, power, **options)


@pytest.fixture(scope="module")
def plain() -> Device:
    return Device(check=False)


@pytest.fixture(scope="module")
def checked() -> Device:
    return Device(check=True)


def data(sets: int, channels: int, N: int, L: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(sets + 10 * channels + 100 * N + L)
    to = REAL[kind].to_complex()
    decay = torch.rand(channels, N, dtype=torch.float64) * 5 / L
    x = torch.complex(-decay, 3 * torch.randn_like(decay))  # up to several turns a step
    v, g = (torch.randn(sets, channels, size, dtype=torch.complex128) for size in (N, L))
    return v.to(to), x.to(to), g.to(to)


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    v, x, _ = data(1, 2, 3, 70, "f32")
    yield "vandermonde", [v, x, 70, True, 0]
    _, x, g = data(1, 1, 2, SEGMENT + 1, "f32")
    yield "vandermonde_transpose", [g, x, 0]


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("conjugate", [True, False], ids=["pairs", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(plain: Device, shape: tuple[int, ...], conjugate: bool, kind: str) -> None:
    v, x, _ = data(*shape, kind)
    for power in (0, 1, 2):
        actual = plain.product(v, x, shape[-1], conjugate, power)
        assert (
            exact.relative_error(actual, exact.product(v, x, shape[-1], conjugate, power)) < TOLERANCE[kind]
        )


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("part", ["real", "complex"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 2, 6 * SEGMENT + 100)], ids=str)
def test_transpose(plain: Device, shape: tuple[int, ...], part: str, kind: str) -> None:
    _, x, g = data(*shape, kind)
    g = g.real.contiguous() if part == "real" else g
    for power in (0, 2):
        actual = plain.transpose(g, x, power)
        assert exact.relative_error(actual, exact.transpose(g, x, power)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", REAL)
def test_powers_beyond_an_unrolled_loop(plain: Device, kind: str) -> None:
    v, x, g = data(5, 1, 40, 300, kind)
    for power in range(5, 9):
        for conjugate in (True, False):
            actual = plain.product(v, x, 300, conjugate, power)
            assert exact.relative_error(actual, exact.product(v, x, 300, conjugate, power)) < TOLERANCE[kind]
        for weights in (g, g.real.contiguous()):
            actual = plain.transpose(weights, x, power)
            assert exact.relative_error(actual, exact.transpose(weights, x, power)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("sizes", [(0, 3), (3, 1)], ids=["no exponents", "one position"])
def test_smallest_sizes(plain: Device, sizes: tuple[int, int], kind: str) -> None:
    N, L = sizes
    v, x, g = data(2, 2, N, L, kind)
    out = plain.product(v, x, L, True, 0)
    torch.testing.assert_close(out, 2 * v.real.sum(-1, keepdim=True).expand(2, 2, L))
    torch.testing.assert_close(plain.product(v, x, L, False, 0), v.sum(-1, keepdim=True).expand(2, 2, L))
    if N:
        torch.testing.assert_close(plain.transpose(g, x, 0), g.expand(2, 2, N))


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0])
def test_float32_keeps_its_digits_at_a_million_positions(plain: Device, rate: float) -> None:
    """float32 inputs, 2^20 positions and the exponents of HiPPO models: 2e-6 of the norm."""
    N, L = 32, 1 << 20
    torch.manual_seed(0)
    x = exact.hippo_exponents(N, rate).to(torch.complex64)
    v, g = torch.randn(1, 1, N, dtype=torch.complex64), torch.randn(1, 1, L)
    rows, columns = exact.levels(x[0], 1 << 10, 1 << 10)
    expected = 2 * torch.einsum("n,ni,nj->ij", v[0, 0].to(torch.complex128), rows, columns).real
    assert exact.relative_error(plain.product(v, x, L, True, 0), expected.view(1, 1, L)) < 2e-6
    weights = g.view(1 << 10, 1 << 10).to(torch.complex128)
    moments = torch.einsum("ij,ni,nj->n", weights, rows, columns)
    assert exact.relative_error(plain.transpose(g, x, 0), moments.view(1, 1, N)) < 2e-6


def test_results_do_not_depend_on_the_order_of_threads(plain: Device) -> None:
    v, x, g = data(2, 1, 5, SEGMENT + 300, "f32")
    products = [plain.product(v, x, 300, True, 0, order=order, seed=5) for order in ORDERS]
    moments = [plain.transpose(g, x, 0, order=order, seed=5) for order in ORDERS]
    assert all(torch.equal(products[0], other) for other in products)
    assert all(torch.equal(moments[0], other) for other in moments)


def test_a_bad_exponent_gives_nan(plain: Device) -> None:
    v = torch.ones(1, 1, 2, dtype=torch.complex64)
    x = torch.tensor([[complex(-1.0, float("inf")), complex(float("nan"), 0.0)]], dtype=torch.complex64)
    for n in range(2):
        assert torch.isnan(plain.product(v[..., n : n + 1], x[:, n : n + 1], 3, True, 0)[..., 1:]).all()


def check(device: Device, kind: str, order: str, seed: int) -> None:
    for conjugate, shape in ((True, (2, 2, 3, 70)), (False, (1, 1, 17, 130)), (True, (1, 1, 1, 4200))):
        v, x, g = data(*shape, kind)
        L = shape[-1]
        actual = device.product(v, x, L, conjugate, 1, order=order, seed=seed)
        assert exact.relative_error(actual, exact.product(v, x, L, conjugate, 1)) < TOLERANCE[kind]
        for weights in (g, g.real.contiguous()):
            actual = device.transpose(weights, x, 1, order=order, seed=seed)
            assert exact.relative_error(actual, exact.transpose(weights, x, 1)) < TOLERANCE[kind]


@pytest.mark.checks("sanitizers", of="vandermonde/cuda")
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(checked: Device, kind: str, order: str) -> None:
    check(checked, kind, order, seed=1)


@pytest.mark.checks("sanitizers", of="vandermonde/cuda")
@pytest.mark.parametrize("kind", REAL)
def test_no_position_is_written_beyond_the_last(checked: Device, kind: str) -> None:
    """Wherever that is among the four rows and four columns of a thread."""
    for sets in range(1, 5):
        for L in range(1, 5):
            v, x, _ = data(sets, 1, 1, L, kind)
            for conjugate, power in ((True, 0), (True, 1), (False, 0), (False, 1)):
                actual = checked.product(v, x, L, conjugate, power)
                want = exact.product(v, x, L, conjugate, power)
                assert exact.relative_error(actual, want) < TOLERANCE[kind]


@pytest.mark.checks("oracle", "emulator", "sanitizers", of="common/cuda")
def test_sums_of_segments_are_in_bounds(checked: Device) -> None:
    _, x, g = data(1, 1, 2, SEGMENT + 100, "f32")
    actual = checked.transpose(g, x, 0, order="random")
    assert exact.relative_error(actual, exact.transpose(g, x, 0)) < TOLERANCE["f32"]


@pytest.mark.launches_nothing
def test_launch_rules() -> None:
    """A block has 4096 positions: of one row, or as many as fit of the rows of further sets."""
    kernels = Kernels("csrc/vandermonde/cuda.cu")

    def blocks(kernel: str, sets: int, channels: int, N: int, L: int) -> int:
        weights = "g" if "transpose" in kernel else "v"
        fields = {
            "sets": sets,
            "channels": channels,
            "N": N,
            "L": L,
            "power": 0,
            weights: None,
            "x": None,
            "out": None,
        }
        return kernels.launch_rule(kernel, fields)[0]

    assert blocks("vandermonde_pairs_f32", 1, 256, 32, 4096) == 256
    assert blocks("vandermonde_pairs_f32", 3, 256, 32, 4097) == 3 * 256 * 2
    assert blocks("vandermonde_pairs_f32", 65, 2, 32, 64) == 2 * 2
    assert blocks("vandermonde_plain_f64", 1, 1024, 1, 1 << 28) == 1 << 26
    assert blocks("vandermonde_transpose_real_f32", 2, 256, 33, SEGMENT) == 2 * 256 * 3
    assert blocks("vandermonde_transpose_real_f32", 1, 1, 1, 1 << 20) == 64


@pytest.mark.thorough
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    checked: Device, kind: str, order: str, seed: int
) -> None:
    check(checked, kind, order, seed)
