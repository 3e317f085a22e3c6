"""The Cauchy products on the stand-in driver, host code and CUDA kernels, against the sums as written."""

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
    pytest.mark.checks("oracle", "emulator", of="cauchy/cuda"),
]

COMPLEX = {"f32": torch.complex64, "f64": torch.complex128}
TOLERANCE = {"f32": 2e-6, "f64": 1e-12}  # of the norm
SEGMENT = 4096
SHAPES = [(1, 1, 1, 2), (1, 2, 3, 5), (3, 2, 5, 128), (2, 1, 17, 129), (9, 1, 2, 200), (1, 2, 70, 300)]


class Device:
    """The two products as the host launches them, with each access checked or not."""

    def __init__(self, check: bool) -> None:
        self._run = functools.partial(driver().run, check=check)

    def product(self, v: Tensor, z: Tensor, w: Tensor, pairs: bool, power: int, **options: Any) -> Tensor:
        return self._run("cauchy", v, z, w, pairs, power, **options)

    def transpose(self, g: Tensor, z: Tensor, w: Tensor, power: int, **options: Any) -> Tensor:
        return self._run("cauchy_transpose", g, z, w, power, **options)


@pytest.fixture(scope="module")
def plain() -> Device:
    return Device(check=False)


@pytest.fixture(scope="module")
def checked() -> Device:
    return Device(check=True)


def data(
    sets: int, channels: int, N: int, L: int, kind: str, *, imaginary: bool = True
) -> tuple[Tensor, ...]:
    """v, z (one row for all channels, its last node infinite), w and g."""
    torch.manual_seed(sets + 10 * channels + 100 * N + L)
    w = torch.complex(
        -torch.rand(channels, N, dtype=torch.float64) - 0.1, 10 * torch.randn(channels, N).double()
    )
    z = exact.nodes(L) if imaginary else torch.randn(L, dtype=torch.complex128)
    v, g = (torch.randn(sets, channels, size, dtype=torch.complex128) for size in (N, L))
    to = COMPLEX[kind]
    return v.to(to), z[None].to(to), w.to(to), g.to(to)


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    v, z, w, _ = data(5, 1, 3, 7, "f32", imaginary=False)
    yield "cauchy", [v, z, w, False, 2]
    _, z, w, g = data(2, 1, 3, SEGMENT + 1, "f32", imaginary=False)
    yield "cauchy_transpose", [g, z, w, 2]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(plain: Device, shape: tuple[int, ...], pairs: bool, kind: str) -> None:
    for imaginary, order in ((True, 1), (True, 2), (False, 3)):
        v, z, w, _ = data(*shape, kind, imaginary=imaginary)
        actual = plain.product(v, z, w, pairs, order)
        assert exact.relative_error(actual, exact.product(v, z, w, pairs, order)) < TOLERANCE[kind]
        if imaginary:
            assert (actual[..., -1] == 0).all()


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1, 3, SEGMENT + 100)], ids=str)
def test_transpose(plain: Device, shape: tuple[int, ...], kind: str) -> None:
    for imaginary, order in ((True, 1), (False, 2)):
        _, z, w, g = data(*shape, kind, imaginary=imaginary)
        actual = plain.transpose(g, z, w, order)
        assert exact.relative_error(actual, exact.transpose(g, z, w, order)) < TOLERANCE[kind]


def test_nodes_of_their_own_for_each_channel(plain: Device) -> None:
    v, _, w, g = data(2, 3, 4, 150, "f64")
    z = torch.randn(3, 150, dtype=torch.complex128)
    assert exact.relative_error(plain.product(v, z, w, True, 1), exact.product(v, z, w, True, 1)) < 1e-12
    assert exact.relative_error(plain.transpose(g, z, w, 1), exact.transpose(g, z, w, 1)) < 1e-12


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("sets", [1, 5])
def test_orders_beyond_an_unrolled_loop(plain: Device, sets: int, kind: str) -> None:
    """And scales at which a power of a distance is no number, though the sums are."""
    small = 2.0 ** (-24 if kind == "f32" else -190)
    v, z, w, g = data(sets, 1, 300, 140, kind, imaginary=False)
    for order in range(4, 9):
        for pairs in (True, False):
            expected = exact.product(v, z, w, pairs, order)
            assert exact.relative_error(plain.product(v, z, w, pairs, order), expected) < TOLERANCE[kind]
            for scale in (small, 1 / small) if order == 5 else ():
                actual = plain.product(v * scale**order, z * scale, w * scale, pairs, order)
                assert exact.relative_error(actual, expected) < TOLERANCE[kind]
        expected = exact.transpose(g, z, w, order)
        assert exact.relative_error(plain.transpose(g, z, w, order), expected) < TOLERANCE[kind]
        for scale in (small, 1 / small) if order == 5 else ():
            actual = plain.transpose(g * scale**order, z * scale, w * scale, order)
            assert exact.relative_error(actual, expected) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("sets", [1, 4])
def test_denormal_numbers(plain: Device, sets: int, kind: str) -> None:
    """Distances whose squares are none, and weights that are denormal, or 0."""
    v, z, w, g = data(sets, 1, 3, 7, kind, imaginary=False)
    small = 2.0 ** (-70 if kind == "f32" else -600)
    z, w = z * small, w * small
    weak = 2.0 ** (-65 if kind == "f32" else -515)  # twice, so that its inverse is a number
    v, g = v * weak * weak, g * weak * weak
    v[..., 0], g[..., 0] = 0, 0
    for given in (v, g):
        assert 0 < given.abs().max() < torch.finfo(given.dtype).tiny

    def scaled_up(x: Tensor, by: float) -> Tensor:
        """In double, what the kernels are given, or give: exactly."""
        return x.to(torch.complex128) * by

    above = 1 / weak
    of = [scaled_up(x, 1 / small) for x in (z, w)]
    v_up, g_up = (scaled_up(scaled_up(x, above), above) for x in (v, g))
    for pairs in (True, False):
        got = scaled_up(scaled_up(plain.product(v, z, w, pairs, 1), small * above), above)
        assert exact.relative_error(got, exact.product(v_up, *of, pairs, 1)) < TOLERANCE[kind]
    got = scaled_up(scaled_up(plain.transpose(g, z, w, 1), small * above), above)
    assert exact.relative_error(got, exact.transpose(g_up, *of, 1)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("sets", [1, 4])
def test_distances_whose_squares_are_infinite(plain: Device, sets: int, kind: str) -> None:
    large = 2.0 ** (70 if kind == "f32" else 600)
    v, z, w, g = data(sets, 1, 3, 7, kind, imaginary=False)
    for pairs in (True, False):
        got = plain.product(v, z * large, w * large, pairs, 1).to(torch.complex128) * large
        assert exact.relative_error(got, exact.product(v, z, w, pairs, 1)) < TOLERANCE[kind]
    got = plain.transpose(g, z * large, w * large, 1).to(torch.complex128) * large
    assert exact.relative_error(got, exact.transpose(g, z, w, 1)) < TOLERANCE[kind]


def test_no_poles(plain: Device) -> None:
    v, z, w, _ = data(2, 2, 0, 5, "f32")
    assert (plain.product(v, z, w, True, 1) == 0).all()


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 1.0])
def test_float32_next_to_the_imaginary_axis(plain: Device, rate: float) -> None:
    """float32 inputs, poles of a HiPPO model at all step sizes and nodes up to infinity: 2e-6 of the norm."""
    N, L = 64, 2049
    torch.manual_seed(0)
    w = (rate * torch.complex(torch.full((1, N), -0.5), torch.pi * torch.arange(N)[None])).to(torch.complex64)
    z = exact.nodes(L)[None].to(torch.complex64)
    v, g = torch.randn(1, 1, N, dtype=torch.complex64), torch.randn(1, 1, L, dtype=torch.complex64)
    product = plain.product(v, z, w, True, 1)
    assert exact.relative_error(product, exact.product(v, z, w, True, 1)) < 2e-6
    assert exact.relative_error(plain.transpose(g, z, w, 1), exact.transpose(g, z, w, 1)) < 2e-6


def test_results_do_not_depend_on_the_order_of_threads(plain: Device) -> None:
    v, z, w, g = data(5, 1, 5, SEGMENT + 100, "f32")
    products = [plain.product(v, z, w, True, 1, order=order, seed=5) for order in ORDERS]
    moments = [plain.transpose(g, z, w, 1, order=order, seed=5) for order in ORDERS]
    assert all(torch.equal(products[0], other) for other in products)
    assert all(torch.equal(moments[0], other) for other in moments)


def check(device: Device, kind: str, order: str, seed: int) -> None:
    for shape in ((5, 2, 3, 140), (1, 1, 35, 60), (6, 1, 1, 1), (7, 1, 1, 1)):
        v, z, w, g = data(*shape, kind, imaginary=shape[-1] > 1)
        product = device.product(v, z, w, True, 2, order=order, seed=seed)
        assert exact.relative_error(product, exact.product(v, z, w, True, 2)) < TOLERANCE[kind]
        moments = device.transpose(g, z, w, 2, order=order, seed=seed)
        assert exact.relative_error(moments, exact.transpose(g, z, w, 2)) < TOLERANCE[kind]


@pytest.mark.checks("sanitizers", of="cauchy/cuda")
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(checked: Device, kind: str, order: str) -> None:
    check(checked, kind, order, seed=1)


@pytest.mark.launches_nothing
def test_launch_rules() -> None:
    """A block has 128 nodes, or at most 32 poles and a segment of nodes, of one set or of four."""
    kernels = Kernels("csrc/cauchy/cuda.cu")

    def blocks(kernel: str, sets: int, channels: int, N: int, L: int) -> int:
        sizes = {"sets": sets, "channels": channels, "N": N, "L": L, "z_stride": 0, "order": 1}
        weights = {"g": None} if "transpose" in kernel else {"v": None, "pairs": 1}
        fields = {
            **sizes,
            **weights,
            "sets_together": 4 if "four" in kernel else 1,
            "z": None,
            "w": None,
            "out": None,
        }
        return kernels.launch_rule(kernel, fields)[0]

    assert blocks("cauchy_one_f32", 1, 256, 32, 2049) == 17 * 256
    assert blocks("cauchy_four_f32", 5, 256, 32, 128) == 2 * 256
    assert blocks("cauchy_transpose_one_f32", 2, 256, 33, SEGMENT) == 2 * 256 * 2
    assert blocks("cauchy_transpose_four_f64", 4, 3, 1, SEGMENT + 1) == 3 * 2


@pytest.mark.thorough
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    checked: Device, kind: str, order: str, seed: int
) -> None:
    check(checked, kind, order, seed)
