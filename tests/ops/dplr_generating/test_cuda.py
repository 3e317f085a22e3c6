"""S4's generating function on the stand-in driver, host code and CUDA kernels, against dense resolvents and torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dplr_generating import adjoint
from tests.cuda_driver import ORDERS, driver, skip_reason
from tests.cuda_emulator import Kernels

from .test_dplr_generating import C128, error, resolvent, system

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="dplr_generating/cuda"),
]

COMPLEX = {"f32": torch.complex64, "f64": C128}
TOLERANCE = {"f32": 2e-5, "f64": 1e-12}  # of the norm: the systems' conditions are in the hundreds
SEGMENT, TURNS = 512, 512
# channels, rank, heads, pairs, nodes: each kernel in registers, then what no such kernel serves
SHAPES = [(1, 1, 2, 5, 130), (2, 1, 1, 33, 135), (1, 2, 3, 4, 129), (1, 0, 2, 3, 20), (3, 1, 1, 4, 140)]
SHAPES += [(2, 3, 2, 5, 30), (3, 2, 1, 40, 9), (1, 6, 1, 2, 5)]


class Device:
    """The op and its gradients as the host launches them, with each access checked or not."""

    def __init__(self, check: bool) -> None:
        self._run = functools.partial(driver().run, check=check)

    def forward(self, tensors: tuple[Tensor, ...], **options: Any) -> Tensor:
        return self._run("dplr_generating_cuda", *tensors, **options)

    def backward(self, g: Tensor, tensors: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
        return tuple(self._run("dplr_generating_backward_cuda", g, *tensors, **options))


@pytest.fixture(scope="module")
def plain() -> Device:
    return Device(check=False)


@pytest.fixture(scope="module")
def checked() -> Device:
    return Device(check=True)


def as_kernels_take(tensors: tuple[Tensor, ...], kind: str) -> tuple[Tensor, ...]:
    """(c, p, q, b, w, t) with the half step in p, b and w, as the op hands them on."""
    c, p, q, b, w, dt, t = tensors
    half = dt.unsqueeze(-1) / 2
    return tuple(
        x.to(COMPLEX[kind] if x.is_complex() else COMPLEX[kind].to_real()).contiguous()
        for x in (c, half * p, q, half * b, half * w, t)
    )


def gradient_of(out: Tensor) -> Tensor:
    return torch.randn(out.shape, dtype=C128, generator=torch.Generator().manual_seed(7))


def wide(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(C128 if x.is_complex() else torch.float64) for x in tensors)


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    tensors = as_kernels_take(system(1, 1, 2, 3, 130), "f32")
    yield "dplr_generating_cuda", [*tensors]
    yield "dplr_generating_backward_cuda", [torch.randn(1, 2, 130, dtype=torch.cfloat), *tensors]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_dense_resolvents(plain: Device, shape: tuple[int, ...], kind: str) -> None:
    tensors = system(*shape)
    assert error(plain.forward(as_kernels_take(tensors, kind)), resolvent(*tensors)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize(
    "shape", [*SHAPES, (1, 1, 1, 3, SEGMENT + 100), (2, 5, 1, 2, 7 * SEGMENT), (7, 6, 2, 1, 300)], ids=str
)
def test_gradients(plain: Device, shape: tuple[int, ...], kind: str) -> None:
    """Against the Cauchy products' adjoint in torch, which gradcheck holds against differences."""
    tensors = as_kernels_take(system(*shape), kind)
    out = plain.forward(tensors)
    g = gradient_of(out)
    wanted = adjoint.gradients(g, *wide(tensors), "torch")
    for got, want in zip(plain.backward(g.to(out.dtype), tensors), wanted, strict=True):
        assert got.shape == want.shape
        assert want.numel() == 0 or error(got, want) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("channels", [1, 3])
def test_infinite_nodes(plain: Device, kind: str, channels: int) -> None:
    """The limit, exactly, in the value and in the gradients; large nodes on the way there."""
    c, p, q, b, w, _ = tensors = as_kernels_take(system(channels, 1, 3, 4, 1), kind)
    t = torch.tensor([math.inf, -math.inf, 1e12], dtype=w.dtype.to_real())
    tensors = (*tensors[:-1], t)
    out = plain.forward(tensors)
    limit = 2 * (c * b).sum(-1, keepdim=True).real
    torch.testing.assert_close(out, limit.expand(out.shape).to(out.dtype), rtol=1e-5, atol=1e-5)
    assert (out[..., 0] == out[..., 1]).all()
    g = gradient_of(out[..., :1])
    at = plain.backward(g.to(out.dtype), (*tensors[:-1], t[:1]))
    for got, want in zip(
        at, (2 * g.real * b.conj(), 0 * p, 0 * q, (2 * g.real * c.conj()).sum(0), 0 * w), strict=True
    ):
        torch.testing.assert_close(got.to(C128), want.to(C128), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("f32", 1e12), ("f32", 1e-13), ("f64", 1e90), ("f64", 1e-90)])
def test_poles_of_any_size(plain: Device, kind: str, size: float) -> None:
    """Fourth powers of the pole are beyond the numbers of this precision, at nodes where it counts."""
    c, p, q, b, w, dt, t = system(1, 1, 2, 4, 40)
    w[0, 0] = complex(-size, size)
    if size > 1:
        c[0, 0, 0] *= size
    else:
        t[0], p[0, 0, 0], q[0, 0, 0] = size, 0, 0
    given = as_kernels_take((c, p, q, b, w, dt, t), kind)
    assert error(plain.forward(given), resolvent(c, p, q, b, w, dt, t)) < TOLERANCE[kind]
    g = gradient_of(torch.empty(1, 2, 40))
    wanted = adjoint.gradients(g, *wide(given), "torch")
    for got, want in zip(plain.backward(g.to(COMPLEX[kind]), given), wanted, strict=True):
        largest = want.abs().max()  # whose square is no number either
        assert error(got / largest, want / largest) < TOLERANCE[kind]


def test_nan_stays_where_it_is(plain: Device) -> None:
    tensors = as_kernels_take(system(2, 1, 3, 5, 40), "f64")
    clean = plain.forward(tensors)
    tensors[3][1, 2], tensors[5][7] = torch.nan, torch.nan
    out = plain.forward(tensors)
    assert out[:, 1].isnan().all()
    assert out[:, :, 7].isnan().all()
    rest = [i for i in range(40) if i != 7]
    assert torch.equal(out[:, ::2][..., rest], clean[:, ::2][..., rest])


def test_no_poles(plain: Device) -> None:
    tensors = as_kernels_take(system(2, 1, 2, 0, 5), "f32")
    assert (plain.forward(tensors) == 0).all()


def test_a_zero_pivot_is_exchanged(plain: Device) -> None:
    """q is made such that 1 + y M_qp[0, 0] is 0 at t = 1, in a small matrix that is regular."""
    c, p, q, b, w, dt, t = system(1, 2, 1, 2, 1)
    t[:] = 1
    m = ops.cauchy(torch.eye(2, dtype=C128) * p[0], 1j * t.to(C128), w * dt / 2, backend="torch")
    turned = ops.cauchy(1j * torch.eye(2, dtype=C128) * p[0], 1j * t.to(C128), w * dt / 2, backend="torch")
    rows = torch.cat((m, turned)).flatten() * dt / 2  # of Re(q), then of Im(q)
    x = torch.linalg.pinv(torch.stack((rows.real, rows.imag))) @ torch.tensor([-1.0, 0], dtype=torch.float64)
    q[0, 0] = torch.complex(x[:2], x[2:])
    given = as_kernels_take((c, p, q, b, w, dt, t), "f64")
    assert error(plain.forward(given), resolvent(c, p, q, b, w, dt, t)) < 1e-9
    g = gradient_of(torch.empty(1, 1, 1))
    for got, want in zip(plain.backward(g, given), adjoint.gradients(g, *given, "torch"), strict=True):
        assert error(got, want) < 1e-9


def test_results_do_not_depend_on_the_order_of_threads(plain: Device) -> None:
    for shape in ((1, 1, 2, 5, SEGMENT + 30), (2, 2, 1, 5, 140)):
        tensors = as_kernels_take(system(*shape), "f32")
        outs = [plain.forward(tensors, order=order, seed=5) for order in ORDERS]
        g = gradient_of(outs[0]).to(torch.complex64)
        gradients = [plain.backward(g, tensors, order=order, seed=5) for order in ORDERS]
        for out, gradient in zip(outs, gradients, strict=True):
            assert torch.equal(out, outs[0])
            assert all(torch.equal(a, b) for a, b in zip(gradient, gradients[0], strict=True))


def check(device: Device, kind: str, order: str, seed: int) -> None:
    for shape in ((1, 1, 1, 34, 130), (1, 2, 1, 3, 20), (2, 3, 2, 3, 9), (2, 1, 1, 3, 129)):
        tensors = as_kernels_take(system(*shape), kind)
        out = device.forward(tensors, order=order, seed=seed)
        g = gradient_of(out)
        wanted = adjoint.gradients(g, *wide(tensors), "torch")
        gradients = device.backward(g.to(out.dtype), tensors, order=order, seed=seed)
        for got, want in zip(gradients, wanted, strict=True):
            assert error(got, want) < TOLERANCE[kind]


@pytest.mark.checks("sanitizers", of="dplr_generating/cuda")
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(checked: Device, kind: str, order: str) -> None:
    check(checked, kind, order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    checked: Device, kind: str, order: str, seed: int
) -> None:
    check(checked, kind, order, seed)


def test_blocks_with_workspace_take_turns(plain: Device) -> None:
    tensors = as_kernels_take(system(1, 3, TURNS + 1, 2, 3), "f32")
    out = plain.forward(tensors)
    last = tuple(x[..., -1:, :].contiguous() if x.dim() > 1 else x for x in tensors)
    assert torch.equal(out[:, -1:], plain.forward(last))


@pytest.mark.launches_nothing
def test_launch_rules() -> None:
    """A block has 128 nodes of a head, or at most 32 poles and a segment of nodes; 512 blocks share workspace."""
    kernels = Kernels("csrc/dplr_generating/cuda.cu")
    sizes = {"channels": 1, "rank": 1, "heads": 256, "N": 33, "L": 2049}
    generate = {**dict.fromkeys(("c", "p", "q", "b", "w", "t", "g", "out", "work")), "factors": 0, **sizes}
    moments = {**dict.fromkeys(("factors", "w", "t", "out")), **sizes, "together": 4}
    gradients = {**dict.fromkeys(("c", "p", "q", "b", "moments", "dc", "dp", "dq", "db", "dw")), **sizes}
    gradients = {**gradients, "segments": 5}
    gradients.pop("L")

    def blocks(kernel: str, fields: dict[str, Any]) -> tuple[int, int, int]:
        return kernels.launch_rule(f"dplr_generating_{kernel}", fields)

    assert blocks("c1_r1_f32", {**generate, "any": 0}) == (17 * 256, 128, 0)
    assert blocks("factors_any_f64", {**generate, "any": 1}) == (512, 128, 0)
    assert blocks("any_f64", {**generate, "any": 1, "heads": 3}) == (17 * 3, 128, 0)
    assert blocks("moments_4_f32", moments) == (2 * 256 * 5, 128, 0)
    assert blocks("moments_6_f32", {**moments, "rank": 2, "together": 6, "N": 5}) == (256 * 2 * 5, 128, 0)
    assert blocks("gradients_f32", gradients) == (5 * 256 * 33 // 128, 128, 0)
