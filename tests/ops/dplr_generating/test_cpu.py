"""The C++ kernel of S4's generating function on every instruction set this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sequence_kernels import native, ops
from sequence_kernels.ops.dplr_generating import adjoint, cpu
from sequence_kernels.ssm.hippo import dplr_init

from .test_dplr_generating import C128, error, resolvent, system

if native.unavailable("cpu") is not None:
    pytest.skip(str(native.unavailable("cpu")), allow_module_level=True)

raw = torch.ops.sequence_kernels_native


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Products in groups of four: 1, 4, 8, 9, 15 of them; nodes around the lanes of a vector and the 512 of a block.
SHAPES = [(1, 0, 2, 3, 7), (1, 1, 2, 5, 16), (3, 1, 1, 4, 17), (1, 2, 2, 4, 511), (2, 3, 1, 4, 1100)]


def gradients(
    tensors: tuple[Tensor, ...], wide: bool = True
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """By the kernel, and by the plain-torch adjoint in complex128; a drawn gradient, half steps as they are."""
    c, p, q, b, w, _, t = tensors
    g = torch.randn(c.shape[0], c.shape[1], t.shape[0], dtype=C128)
    given = (g, c, p, q, b, w, t)
    single = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in given]
    got = cpu.dplr_generating_backward(*(given if wide else single))
    return got, adjoint.gradients(*given, "torch")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_instruction_set(instruction_set: int, shape: tuple[int, int, int, int, int]) -> None:
    tensors = system(*shape)
    want = resolvent(*tensors)
    assert error(ops.dplr_generating(*tensors, backend="cpu"), want) < 1e-13
    single = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in tensors]
    assert error(ops.dplr_generating(*single, backend="cpu"), want) < 2e-5


@pytest.mark.checks("oracle", of="dplr_generating/cpu")
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 3, 4100)])
def test_backward_on_every_instruction_set(
    instruction_set: int, shape: tuple[int, int, int, int, int]
) -> None:
    tensors = system(*shape)
    for wide, tolerance in ((True, 1e-13), (False, 1e-4)):
        for got, want in zip(*gradients(tensors, wide), strict=True):
            assert got.shape == want.shape
            assert got.dtype == (C128 if wide else torch.complex64)
            assert want.numel() == 0 or error(got, want) < tolerance


def test_backward_at_far_and_infinite_nodes(instruction_set: int) -> None:
    """Beside near ones in the same vector; a block with a far node takes another way."""
    *rest, t = system(2, 2, 2, 4, 40)
    t[[0, 3, 17, 39]] = torch.tensor([torch.inf, -torch.inf, 1e12, -1e30], dtype=torch.float64)
    for wide, tolerance in ((True, 1e-13), (False, 1e-4)):
        for got, want in zip(*gradients((*rest, t), wide), strict=True):
            assert error(got, want) < tolerance


@pytest.mark.parametrize("size", [1e12, 1e-13])
def test_backward_with_poles_of_any_size(instruction_set: int, size: float) -> None:
    c, p, q, b, w, dt, t = system(1, 1, 2, 4, 40)
    w[0, 0] = complex(-size, size)
    if size < 1:
        t[0], p[0, 0, 0], q[0, 0, 0] = 0, 0, 0
    for got, want in zip(*gradients((c, p, q, b, w, dt, t), wide=False), strict=True):
        largest = want.abs().max()  # whose square is no number of float32
        assert error(got / largest, want / largest) < 1e-4


@pytest.mark.parametrize("dt", [1e-3, 1e-2, 1e-1])
def test_hippo_legs(instruction_set: int, dt: float) -> None:
    """The correction cancels digits of float32, a hundred of its roundings; float64 has them to spare."""
    init = dplr_init("legs", 64)
    torch.manual_seed(0)
    p, b, w = init.p.to(C128), init.b.to(C128), init.w.to(C128)
    c = torch.randn(1, 1, 32, dtype=C128)
    odd = 4097
    t = torch.tan(torch.arange(odd // 2 + 1, dtype=torch.float64) * (torch.pi / odd))
    tensors = (c, p, p.conj(), b, w, torch.tensor([dt], dtype=torch.float64), t)
    want = resolvent(*tensors)
    assert error(ops.dplr_generating(*tensors, backend="cpu"), want) < 1e-11
    single = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in tensors]
    assert error(ops.dplr_generating(*single, backend="cpu"), want) < 1e-5


@pytest.mark.parametrize("dtype", [torch.complex64, C128])
@pytest.mark.parametrize("rank", [1, 2])
def test_same_bits_for_any_number_of_threads(threads: None, dtype: torch.dtype, rank: int) -> None:
    tensors = [x.to(dtype if x.is_complex() else dtype.to_real()) for x in system(2, rank, 3, 7, 2000)]
    c, p, q, b, w, _, t = tensors = [x.repeat(3) if x.dim() == 1 and len(x) > 3 else x for x in tensors]
    g = torch.randn(2, 3, 6000, dtype=dtype)
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        backward = cpu.dplr_generating_backward(g, c, p, q, b, w, t)
        results.append((ops.dplr_generating(*tensors, backend="cpu"), *backward))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nan_stays_where_it_is() -> None:
    c, p, q, b, w, dt, t = system(2, 1, 3, 5, 40)
    clean = ops.dplr_generating(c, p, q, b, w, dt, t, backend="cpu")
    b[1, 2], t[7] = torch.nan, torch.nan
    out = ops.dplr_generating(c, p, q, b, w, dt, t, backend="cpu")
    assert out[:, 1].isnan().all()
    assert out[:, :, 7].isnan().all()
    rest = [i for i in range(40) if i != 7]
    assert torch.equal(out[:, ::2][..., rest], clean[:, ::2][..., rest])


def test_nan_in_a_gradient_stays_in_its_head() -> None:
    c, p, q, b, w, _, t = system(2, 1, 3, 5, 40)
    g = torch.randn(2, 3, 40, dtype=C128)
    clean = cpu.dplr_generating_backward(g, c, p, q, b, w, t)
    g[0, 1, 7] = torch.nan
    for got, before in zip(cpu.dplr_generating_backward(g, c, p, q, b, w, t), clean, strict=True):
        got, before = (x.movedim(-2, 0) for x in (got, before))
        assert got[1].isnan().any()
        assert torch.equal(got[::2], before[::2])


def test_every_element_is_written() -> None:
    """Freed memory full of NaN is what the next outputs are made of."""
    c, p, q, b, w, _, t = system(2, 2, 3, 5, 4100)
    g = torch.randn(2, 3, 4100, dtype=C128)
    arguments = (c, p, q, b, w, t)
    for run in (
        lambda: (cpu.dplr_generating(*arguments),),
        lambda: cpu.dplr_generating_backward(g, *arguments),
    ):
        like = run()
        for _ in range(3):
            poison = [torch.full_like(x, torch.nan) for x in like]
            del poison
            assert all(torch.equal(a, b) for a, b in zip(run(), like, strict=True))
