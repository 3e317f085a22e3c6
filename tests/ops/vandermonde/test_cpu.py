"""The C++ Vandermonde kernels against float64 sums written out, on every instruction set this machine has."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sequence_kernels import native
from sequence_kernels.ops.vandermonde import cpu

if native.unavailable("cpu") is not None:
    pytest.skip(str(native.unavailable("cpu")), allow_module_level=True)

raw = torch.ops.sequence_kernels_native


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def product(v: Tensor, x: Tensor, L: int, conjugate: bool, power: int) -> Tensor:
    """The definition, a position at a time, in complex128."""
    v, x = v.to(torch.complex128), x.to(torch.complex128)
    columns = [(v * (position**power) * torch.exp(x * position)).sum(-1) for position in range(L)]
    batch = torch.broadcast_shapes(v.shape[:-1], x.shape[:-1])
    out = torch.stack(columns, -1) if columns else v.new_empty(*batch, 0)
    return 2 * out.real if conjugate else out


def moments(g: Tensor, x: Tensor, power: int) -> Tensor:
    """The definition of the transpose, a position at a time, in complex128."""
    g, x = g.to(torch.complex128), x.to(torch.complex128)
    out = torch.zeros(torch.broadcast_shapes((*g.shape[:-1], 1), x.shape), dtype=torch.complex128)
    for position in range(g.shape[-1]):
        out += g[..., position, None] * (position**power) * torch.exp(x * position)
    return out


def error(got: Tensor, expected: Tensor) -> float:
    return ((got.to(expected.dtype) - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def poles(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.complex(-0.05 * torch.rand(*shape), 3 * torch.randn(*shape)).to(dtype)


PRECISIONS = [(torch.complex64, 2e-6), (torch.complex128, 2e-14)]
# Around the lanes of a vector, the 64 of a row and the 4096 of a tile.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 2),
    (1, 2, 7, 63),
    (3, 1, 16, 64),
    (1, 2, 33, 65),
    (1, 1, 70, 300),
    (2, 2, 3, 4097),
]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [0, 2])
def test_product(
    instruction_set: int, shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, power: int
) -> None:
    sets, channels, N, L = shape
    torch.manual_seed(N)
    v, x = torch.randn(sets, channels, N, dtype=dtype), poles(channels, N, dtype=dtype)
    for conjugate in (True, False):
        got = cpu.vandermonde(v, x, L, conjugate, power)
        assert got.is_complex() != conjugate
        assert error(got, product(v, x, L, conjugate, power)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [0, 2])
def test_transpose(
    instruction_set: int, shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, power: int
) -> None:
    sets, channels, N, L = shape
    torch.manual_seed(N)
    g, x = torch.randn(sets, channels, L, dtype=dtype), poles(channels, N, dtype=dtype)
    for weights in (g, g.real):
        got = cpu.vandermonde_transpose(weights, x, power)
        assert error(got, moments(weights, x, power)) < tolerance


@pytest.mark.parametrize("dt", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("N", "L"), [(4, 1 << 20), (256, 1 << 14)])
def test_float32_over_the_range_of_hippo(dt: float, N: int, L: int) -> None:
    """S4D-Lin's poles: the phase reaches 10^8 turns."""
    torch.manual_seed(0)
    x = dt * torch.complex(torch.full((N,), -0.5), math.pi * torch.arange(N, dtype=torch.float32))
    v, g = torch.randn(N, dtype=torch.complex64), torch.randn(L)
    position = torch.arange(L, dtype=torch.float64)
    exact = torch.zeros(L, dtype=torch.float64)
    sums = []
    for n in range(N):
        wave = torch.exp(x[n].to(torch.complex128) * position)
        exact += 2 * (v[n].to(torch.complex128) * wave).real
        sums.append((g.double() * wave).sum())
    assert error(cpu.vandermonde(v, x, L, True, 0), exact) < 2e-6
    assert error(cpu.vandermonde_transpose(g, x, 0), torch.stack(sums)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_same_bits_for_any_number_of_threads(threads: None, dtype: torch.dtype) -> None:
    v, x = torch.randn(2, 3, 5, dtype=dtype), poles(3, 5, dtype=dtype)
    g = torch.randn(2, 3, 9000, dtype=dtype)
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append((cpu.vandermonde(v, x, 9000, True, 1), cpu.vandermonde_transpose(g, x, 1)))
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("v_batch", "x_batch"),
    [
        ((), ()),
        ((3,), ()),
        ((), (3,)),
        ((2, 3), (3,)),
        ((2, 1), (4,)),
        ((2, 1), (5, 1, 3)),
        ((0, 3), (3,)),
        ((2, 1), (1, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
@pytest.mark.parametrize("N", [4, 0])
def test_leading_dimensions_broadcast(
    v_batch: tuple[int, ...], x_batch: tuple[int, ...], dtype: torch.dtype, N: int
) -> None:
    v, x = torch.randn(*v_batch, N, dtype=dtype), -torch.rand(*x_batch, N).to(dtype)
    for L in (0, 7):
        for conjugate in (True, False):
            got, expected = cpu.vandermonde(v, x, L, conjugate, 0), product(v, x, L, conjugate, 0)
            assert got.dtype == (dtype if not conjugate else torch.float64)
            torch.testing.assert_close(got, expected if got.is_complex() else expected.real)
        g = torch.randn(*v_batch, L, dtype=dtype)
        got, expected = cpu.vandermonde_transpose(g, x, 0), moments(g, x, 0)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected if dtype.is_complex else expected.real)


def test_strided_and_conjugated_views() -> None:
    v, x = torch.randn(5, 8, dtype=torch.complex64), poles(5, 8, dtype=torch.complex64)
    views = v.mT.conj(), x.mT.conj()
    copies = [view.resolve_conj().contiguous() for view in views]
    assert torch.equal(cpu.vandermonde(*views, 100, False, 0), cpu.vandermonde(*copies, 100, False, 0))
    g = torch.randn(100, 8, dtype=torch.complex64).mT.conj()
    expected = cpu.vandermonde_transpose(g.resolve_conj().contiguous(), copies[1], 0)
    assert torch.equal(cpu.vandermonde_transpose(g, views[1], 0), expected)


@pytest.mark.parametrize("L", [5, 4096, 4100])
def test_every_element_is_written(L: int) -> None:
    """Freed memory full of NaN is what the next outputs are made of."""
    v, x = torch.randn(2, 3, 5, dtype=torch.complex64), poles(3, 5, dtype=torch.complex64)
    g = torch.randn(2, 3, L)
    for run in (lambda: cpu.vandermonde(v, x, L, True, 0), lambda: cpu.vandermonde_transpose(g, x, 0)):
        like = run()
        for _ in range(3):
            poison = torch.full_like(like, float("nan"))
            del poison
            assert torch.equal(run(), like)


def test_decayed_and_growing_states() -> None:
    one = torch.ones(1, dtype=torch.complex64)
    decayed = torch.tensor([complex(-math.inf, 3.0)], dtype=torch.complex64)
    assert cpu.vandermonde(one, decayed, 4, True, 0).tolist() == [2, 0, 0, 0]
    assert cpu.vandermonde_transpose(torch.ones(9), decayed, 0).tolist() == [1]
    # Positions that are not asked for would overflow.
    growing = torch.tensor([2.0 + 0.5j], dtype=torch.complex64)
    v, g = torch.ones(1, 1, dtype=torch.complex64), torch.ones(40)
    assert error(cpu.vandermonde(v, growing, 40, True, 0), product(v, growing, 40, True, 0)) < 1e-5
    assert error(cpu.vandermonde_transpose(g, growing, 0), moments(g, growing, 0)) < 1e-5


@pytest.mark.parametrize("bad", [complex(math.nan, 0), complex(0, math.nan), complex(0, math.inf)])
def test_nan_stays_in_its_channel(bad: complex) -> None:
    v, x = torch.randn(3, 5, dtype=torch.complex64), poles(3, 5, dtype=torch.complex64)
    clean = cpu.vandermonde(v, x, 70, True, 0)
    x[1, 2] = bad
    out = cpu.vandermonde(v, x, 70, True, 0)
    assert out[1].isnan().all()
    assert torch.equal(out[::2], clean[::2])
    assert cpu.vandermonde_transpose(torch.ones(70), x, 0).isnan().nonzero().tolist() == [[1, 2]]
