"""The C++ Cauchy kernels against complex128 sums written out, on every instruction set this machine has."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sequence_kernels import native
from sequence_kernels.ops.cauchy import cpu

if native.unavailable("cpu") is not None:
    pytest.skip(str(native.unavailable("cpu")), allow_module_level=True)

raw = torch.ops.sequence_kernels_native


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    """The definition, a pole at a time, in complex128."""
    v, z, w = (t.to(torch.complex128) for t in (v, z, w))
    out = torch.zeros(torch.broadcast_shapes((*v.shape[:-1], 1), (*w.shape[:-1], 1), z.shape), dtype=v.dtype)
    for n in range(v.shape[-1]):
        out += v[..., n, None] / (z - w[..., n, None]) ** order
        if conjugate:
            out += v[..., n, None].conj() / (z - w[..., n, None].conj()) ** order
    return out


def sums(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    """The definition of the transpose, a pole at a time, in complex128."""
    g, z, w = (t.to(torch.complex128) for t in (g, z, w))
    if conjugate:
        return sums(g, z, w, False, order) + sums(g.conj(), z.conj(), w, False, order)
    columns = [(g / (z - w[..., n, None]) ** order).sum(-1) for n in range(w.shape[-1])]
    return torch.stack(columns, -1)


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.to(expected.dtype) - expected).norm() / expected.norm()).item()


def on_axis(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.complex(torch.zeros(shape), 3 * torch.randn(shape)).to(dtype)


def poles(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.complex(-0.1 - torch.rand(shape), 3 * torch.randn(shape)).to(dtype)


PRECISIONS = [(torch.complex64, 2e-6), (torch.complex128, 5e-15)]
# Sets in groups of four; nodes around the lanes of a vector and the 512 of a block.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 2, 16), (4, 2, 7, 17), (9, 2, 3, 513), (1, 1, 40, 1100)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_product_and_transpose(
    instruction_set: int, shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, order: int
) -> None:
    sets, channels, N, L = shape
    torch.manual_seed(N)
    v, w = torch.randn(sets, channels, N, dtype=dtype), poles(channels, N, dtype=dtype)
    g = torch.randn(sets, channels, L, dtype=dtype)
    for z in (on_axis(L, dtype=dtype), torch.rand(channels, L) + on_axis(channels, L, dtype=dtype)):
        for conjugate in (True, False):
            got = cpu.cauchy(v, z, w, conjugate, order)
            assert error(got, product(v, z, w, conjugate, order)) < tolerance
            transposed = cpu.cauchy_transpose(g, z, w, conjugate, order)
            assert error(transposed, sums(g, z, w, conjugate, order)) < tolerance


@pytest.mark.parametrize("dt", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("N", [4, 128])
def test_float32_over_the_range_of_s4(dt: float, N: int) -> None:
    """Poles 10^-4 from the imaginary axis, nodes on it from 0 to 10^6."""
    torch.manual_seed(0)
    w = dt * torch.complex(torch.full((N,), -0.5), math.pi * torch.arange(N, dtype=torch.float32))
    nodes = 2 * torch.tan(torch.linspace(0, math.pi / 2 * (1 - 1e-6), 2049, dtype=torch.float64)).float()
    z = torch.complex(torch.zeros_like(nodes), nodes)
    v, g = torch.randn(2, N, dtype=torch.complex64), torch.randn(2, 2049, dtype=torch.complex64)
    expected = product(v, z, w, True, 1)
    got = cpu.cauchy(v, z, w, True, 1)
    assert error(got, expected) < 2e-6
    # S4 multiplies by 1 + z / 2, so the smallest values count as much as the largest.
    factor = 1 + z.to(torch.complex128) / 2
    assert error(got * factor, expected * factor) < 2e-6
    for conjugate in (True, False):
        assert error(cpu.cauchy_transpose(g, z, w, conjugate, 1), sums(g, z, w, conjugate, 1)) < 2e-6


@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("order", [1, 2])
def test_infinite_nodes_are_exactly_zero(conjugate: bool, order: int) -> None:
    inf = math.inf
    z = torch.tensor([complex(0, inf), 1j, complex(-inf, 2), complex(inf, -inf)], dtype=torch.complex64)
    w, v = poles(3, 5, dtype=torch.complex64), torch.randn(3, 5, dtype=torch.complex64)
    out = cpu.cauchy(v, z, w, conjugate, order)
    assert (out[:, [0, 2, 3]] == 0).all()
    assert error(out[:, 1], product(v, z[1:2], w, conjugate, order)[:, 0]) < 2e-6
    g = torch.full((3, 4), complex(1, 2), dtype=torch.complex64)
    g[:, 2] = complex(math.nan, inf)  # a weight that counts for nothing
    want = sums(g[:, 1:2], z[1:2], w, conjugate, order)
    assert error(cpu.cauchy_transpose(g, z, w, conjugate, order), want) < 2e-6


@pytest.mark.parametrize("conjugate", [True, False])
def test_huge_nodes_and_poles_do_not_overflow(conjugate: bool) -> None:
    w, v = poles(5, dtype=torch.complex64), torch.randn(5, dtype=torch.complex64)
    z = torch.tensor([1j, 1e10j, 1e18j, 3e30j], dtype=torch.complex64)
    got, expected = cpu.cauchy(v, z, w, conjugate, 1), product(v, z, w, conjugate, 1)
    assert ((got - expected).abs() <= 2e-6 * expected.abs()).all()
    g = torch.tensor([1, 1e10j, complex(1e18, 1e18), 3e30], dtype=torch.complex64)[:3]
    got, expected = cpu.cauchy_transpose(g, z[:3], w, conjugate, 1), sums(g, z[:3], w, conjugate, 1)
    assert ((got - expected).abs() <= 2e-6 * expected.abs()).all()
    w[0] = complex(-1e12, 1e12)
    assert error(cpu.cauchy(v, z[:1], w, conjugate, 1), product(v, z[:1], w, conjugate, 1)) < 2e-6
    got, expected = cpu.cauchy_transpose(g, z[:3], w, conjugate, 1), sums(g, z[:3], w, conjugate, 1)
    assert ((got - expected).abs() <= 2e-6 * expected.abs()).all()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_same_bits_for_any_number_of_threads(threads: None, dtype: torch.dtype) -> None:
    v, w, z = torch.randn(5, 3, 7, dtype=dtype), poles(3, 7, dtype=dtype), on_axis(2000, dtype=dtype)
    g = torch.randn(5, 3, 2000, dtype=dtype)
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append(
            [cpu.cauchy(v, z, w, pairs, order) for pairs in (True, False) for order in (1, 2)]
            + [cpu.cauchy_transpose(g, z, w, pairs, order) for pairs in (True, False) for order in (1, 2)]
        )
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("v_batch", "z_batch", "w_batch"),
    [
        ((), (), ()),
        ((3,), (), ()),
        ((2, 3), (), (3,)),
        ((), (3,), ()),
        ((2, 1), (4, 1, 1), (3,)),
        ((2, 3), (1, 1), (1, 3)),
        ((0, 3), (), (3,)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
@pytest.mark.parametrize(("N", "L"), [(4, 6), (0, 6), (4, 0)])
def test_leading_dimensions_broadcast(
    v_batch: tuple[int, ...],
    z_batch: tuple[int, ...],
    w_batch: tuple[int, ...],
    dtype: torch.dtype,
    N: int,
    L: int,
) -> None:
    v, z, w = (
        torch.randn(*v_batch, N, dtype=dtype),
        torch.rand(*z_batch, L).to(dtype),
        -torch.rand(*w_batch, N).to(dtype),
    )
    for conjugate in (True, False):
        got, expected = cpu.cauchy(v, z, w, conjugate, 1), product(v, z, w, conjugate, 1)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected if dtype.is_complex else expected.real)
    if N:
        g = torch.randn(*v_batch, L, dtype=dtype)
        for conjugate in (True, False):
            got, expected = cpu.cauchy_transpose(g, z, w, conjugate, 1), sums(g, z, w, conjugate, 1)
            assert got.dtype == dtype
            torch.testing.assert_close(got, expected if dtype.is_complex else expected.real)


def test_strided_and_conjugated_views() -> None:
    dtype = torch.complex64
    v, w, z = (
        torch.randn(6, 3, dtype=dtype).mT.conj(),
        poles(6, 3, dtype=dtype).mT.conj(),
        on_axis(18, dtype=dtype)[::2].conj(),
    )
    g = torch.randn(9, 3, dtype=dtype).mT.conj()
    plain = [t.resolve_conj().contiguous() for t in (v, z, w, g)]
    assert torch.equal(cpu.cauchy(v, z, w, True, 1), cpu.cauchy(*plain[:3], True, 1))
    for pairs in (True, False):
        want = cpu.cauchy_transpose(plain[3], plain[1], plain[2], pairs, 1)
        assert torch.equal(cpu.cauchy_transpose(g, z, w, pairs, 1), want)


def test_every_element_is_written() -> None:
    """Freed memory full of NaN is what the next outputs are made of."""
    v, w, z = (
        torch.randn(5, 3, 7, dtype=torch.complex64),
        poles(3, 7, dtype=torch.complex64),
        on_axis(530, dtype=torch.complex64),
    )
    g = torch.randn(5, 3, 530, dtype=torch.complex64)
    for run in (lambda: cpu.cauchy(v, z, w, True, 1), lambda: cpu.cauchy_transpose(g, z, w, True, 1)):
        like = run()
        for _ in range(3):
            poison = torch.full_like(like, float("nan"))
            del poison
            assert torch.equal(run(), like)


def test_nan_stays_where_it_is() -> None:
    v, w, z = (
        torch.randn(3, 5, dtype=torch.complex64),
        poles(3, 5, dtype=torch.complex64),
        on_axis(40, dtype=torch.complex64),
    )
    clean = cpu.cauchy(v, z, w, True, 1)
    v[1, 2] = complex(math.nan, 0)
    z[7] = complex(0, math.nan)
    out = cpu.cauchy(v, z, w, True, 1)
    assert out[1].isnan().all()
    assert out[:, 7].isnan().all()
    rest = [i for i in range(40) if i != 7]
    assert torch.equal(out[::2][:, rest], clean[::2][:, rest])
