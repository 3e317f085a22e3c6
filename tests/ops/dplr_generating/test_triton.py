"""The Triton kernels of S4's generating function, interpreted or compiled on a GPU, against dense resolvents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.triton_kernels import compiled, device, skip_reason

from .test_dplr_generating import C128, error, resolvent, system

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import cauchy, dispatch
from sequence_kernels.ops.cauchy import triton as cauchy_kernels
from sequence_kernels.ops.dplr_generating import adjoint
from sequence_kernels.ops.dplr_generating import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="dplr_generating/triton")

DEVICE = device()
TOLERANCE = {torch.complex64: 2e-5, C128: 1e-12}  # of the norm: the systems' conditions are in the hundreds
# channels, rank, heads, pairs, nodes
SHAPES = [
    (1, 1, 2, 5, 130),
    (2, 1, 1, 9, 7),
    (1, 2, 1, 4, 129),
    (2, 0, 2, 3, 20),
    (5, 1, 1, 4, 40),
    (2, 3, 1, 5, 9),
]


def as_kernels_take(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """(c, p, q, b, w, t) with the half step in p, b and w, as the op hands them on."""
    c, p, q, b, w, dt, t = tensors
    half = dt.unsqueeze(-1) / 2
    return [
        x.to(dtype if x.is_complex() else dtype.to_real()).to(DEVICE)
        for x in (c, half * p, q, half * b, half * w, t)
    ]


def gradient_of(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=C128, generator=torch.Generator().manual_seed(7))


def assert_gradients(tensors: list[Tensor], tolerance: float) -> None:
    """Against the Cauchy products' adjoint in torch, which gradcheck holds against differences."""
    c, *_, t = tensors
    g = gradient_of(*c.shape[:2], len(t))
    wide = [x.cpu().to(C128 if x.is_complex() else torch.float64) for x in tensors]
    wanted = adjoint.gradients(g, *wide, "torch")
    gradients = kernels.dplr_generating_backward(g.to(c.dtype).to(DEVICE), *tensors)
    for got, want in zip(gradients, wanted, strict=True):
        assert got.shape == want.shape
        assert got.dtype == c.dtype
        assert got.is_contiguous()
        assert want.numel() == 0 or error(got.cpu(), want) < tolerance


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = as_kernels_take(system(*shape), dtype)
    out = kernels.dplr_generating(*tensors)
    assert out.dtype == dtype
    assert error(out.cpu(), resolvent(*system(*shape))) < TOLERANCE[dtype]
    assert_gradients(tensors, TOLERANCE[dtype])


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_that_are_filled(
    shape: tuple[int, ...], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    """By nodes, of which one more follows, and by as many channels as the rank leaves rows for; and almost."""
    channels, rank, *_ = shape
    rows, _, nodes = kernels.tiling(channels, rank)
    for less in range(4 if compiled(request) else 1):
        fewer = max(rows - rank - less, rows // 2 + 1 - rank, 1)
        system_of = fewer, rank, 2, 8 - less, nodes + 1 - less
        tensors = as_kernels_take(system(*system_of), dtype)
        assert (
            error(kernels.dplr_generating(*tensors).cpu(), resolvent(*system(*system_of))) < TOLERANCE[dtype]
        )
        assert_gradients(tensors, TOLERANCE[dtype])


def test_gradients_of_more_than_a_segment() -> None:
    assert_gradients(as_kernels_take(system(1, 1, 1, 3, kernels.SEGMENT + 20), C128), 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_infinite_nodes(dtype: torch.dtype) -> None:
    c, p, q, b, w, _ = as_kernels_take(system(2, 1, 3, 4, 1), dtype)
    t = torch.tensor([math.inf, -math.inf, 1e12], dtype=dtype.to_real(), device=DEVICE)
    out = kernels.dplr_generating(c, p, q, b, w, t)
    limit = 2 * (c * b).sum(-1, keepdim=True).real
    torch.testing.assert_close(out, limit.expand(out.shape).to(dtype), rtol=1e-5, atol=1e-5)
    assert (out[..., 0] == out[..., 1]).all()
    g = gradient_of(*out.shape[:2], 1).to(dtype).to(DEVICE)
    at = kernels.dplr_generating_backward(g, c, p, q, b, w, t[:1])
    for got, want in zip(
        at, (2 * g.real * b.conj(), 0 * p, 0 * q, (2 * g.real * c.conj()).sum(0), 0 * w), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_zero_pivot_is_exchanged() -> None:
    """q is made such that 1 + y M_qp[0, 0] is 0 at t = 1, in a small matrix that is regular."""
    c, p, q, b, w, dt, t = system(1, 2, 1, 2, 1)
    t[:] = 1
    m, turned = (cauchy(u * torch.eye(2) * p[0], 1j * t, w * dt / 2, backend="torch") for u in (1, 1j))
    rows = torch.cat((m, turned)).flatten() * dt / 2  # of Re(q), then of Im(q)
    x = torch.linalg.pinv(torch.stack((rows.real, rows.imag))) @ torch.tensor([-1.0, 0], dtype=torch.float64)
    q[0, 0] = torch.complex(x[:2], x[2:])
    given = as_kernels_take((c, p, q, b, w, dt, t), C128)
    assert error(kernels.dplr_generating(*given).cpu(), resolvent(c, p, q, b, w, dt, t)) < 1e-9
    assert_gradients(given, 1e-9)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_nan_stays_where_it_is() -> None:
    tensors = as_kernels_take(system(2, 2, 3, 5, 40), C128)
    clean = kernels.dplr_generating(*tensors)
    tensors[3][1, 2], tensors[5][7] = torch.nan, torch.nan
    out = kernels.dplr_generating(*tensors)
    assert out[:, 1].isnan().all()
    assert out[:, :, 7].isnan().all()
    rest = [i for i in range(40) if i != 7]
    assert torch.equal(out[:, ::2][..., rest], clean[:, ::2][..., rest])


@pytest.mark.launches_nothing
def test_launch_rule() -> None:
    """128 nodes and all products while they are 16 or fewer; more products, fewer nodes."""
    assert kernels.tiling(1, 1) == (2, 2, 128)
    assert kernels.tiling(2, 1) == (4, 2, 128)
    assert kernels.tiling(1, 2) == (4, 4, 128)
    assert kernels.tiling(4, 1) == (8, 2, 128)
    assert kernels.tiling(5, 3) == (8, 4, 64)
    assert kernels.tiling(0, 0) == (1, 1, 128)
    assert kernels.tiling(30, 30) == (64, 32, 16)
    assert kernels.tiling(1, 2, 1024) == (4, 4, 64)


def test_empty_dimensions() -> None:
    for channels, heads, pairs, length in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]:
        tensors = as_kernels_take(system(channels, 1, heads, pairs, length), C128)
        out = kernels.dplr_generating(*tensors)
        assert out.shape == (channels, heads, length)
        assert pairs > 0 or (out == 0).all()
        for gradient in kernels.dplr_generating_backward(torch.ones_like(out), *tensors):
            assert length > 0 or (gradient == 0).all()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve backend="triton" of the registered ops, on the CPU too."""
    served = {name: getattr(kernels, name) for name in ("dplr_generating", "dplr_generating_backward")}
    served |= {name: getattr(cauchy_kernels, name) for name in ("cauchy", "cauchy_transpose")}
    for op, function in served.items():
        able = dispatch.Implementation(function, lambda device, dtype: None)
        monkeypatch.setitem(dispatch._implementations[op], "triton", able)


def function(*tensors: Tensor) -> Tensor:
    return torch.ops.sequence_kernels.dplr_generating.default(*tensors, "triton")


@pytest.mark.checks("gradcheck", of="dplr_generating/triton")
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("rank", [1, 2])
def test_first_derivatives(rank: int) -> None:
    *arguments, t = as_kernels_take(system(1, rank, 1, 2, 3), C128)
    assert gradcheck(function, [*(x.requires_grad_() for x in arguments), t], fast_mode=True)


@pytest.mark.thorough
@pytest.mark.usefixtures("registered")
def test_derivatives_of_nodes_and_second_ones() -> None:
    arguments = [x.requires_grad_() for x in as_kernels_take(system(1, 1, 1, 2, 2), C128)]
    assert gradcheck(function, arguments, fast_mode=True)
    assert gradgradcheck(function, arguments, fast_mode=True)
