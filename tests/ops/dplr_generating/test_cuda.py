"""The CUDA kernels of S4's generating function, in the emulator, against dense resolvents and the adjoint in torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops.dplr_generating import adjoint
from tests.cuda_emulator import Kernels, skip_reason

from .test_dplr_generating import C128, error, resolvent, system

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="dplr_generating/cuda"),
]

COMPLEX = {"f32": torch.complex64, "f64": C128}
TOLERANCE = {"f32": 2e-5, "f64": 1e-12}  # of the norm: the systems' conditions are in the hundreds
SEGMENT, TURNS = 512, 512
# channels, rank, heads, pairs, nodes: each kernel in registers, then what no such kernel serves
SHAPES = [(1, 1, 2, 5, 130), (2, 1, 1, 33, 7), (1, 2, 3, 4, 129), (1, 0, 2, 3, 20), (3, 1, 1, 4, 140)]
SHAPES += [(2, 3, 2, 5, 30), (3, 2, 1, 40, 9)]
ORDERS = ("forward", "reverse", "random", "skewed")
IN_REGISTERS = ((1, 1), (2, 1), (1, 2))


class Emulated:
    """The op and its gradients on the kernels of the emulator, launched as the host will launch them."""

    def __init__(self, check: bool) -> None:
        self.kernels = Kernels("csrc/dplr_generating/cuda.cu", check=check)

    def _sizes(self, c: Tensor, p: Tensor, t: Tensor) -> dict[str, int]:
        channels, heads, pairs = c.shape
        return {"channels": channels, "rank": p.shape[0], "heads": heads, "N": pairs, "L": t.shape[0]}

    def _generate(
        self, name: str, tensors: tuple[Tensor, ...], g: Tensor | None, rows: int, kind: str, **options: Any
    ) -> Tensor:
        c, p, q, b, w, t = tensors
        sizes = self._sizes(c, p, t)
        rank = sizes["rank"]
        name += "any" if (few := (c.shape[0], rank)) not in IN_REGISTERS else f"c{few[0]}_r{few[1]}"
        out = torch.full((rows, c.shape[1], t.shape[0]), torch.nan, dtype=COMPLEX[kind])
        fields: dict[str, Any] = {"c": c, "p": p, "q": q, "b": b, "w": w, "t": t, "g": g, "out": out, **sizes}
        fields |= {"work": None, "any": int(few not in IN_REGISTERS), "factors": int(g is not None)}
        if fields["any"]:
            blocks = self.kernels.launch_rule(f"{name}_{kind}", fields)[0]
            each = rank * (1 + rank) if g is None else rank * (2 + 2 * rank)
            fields["work"] = torch.full((each * blocks * 128,), torch.nan, dtype=COMPLEX[kind])
        self.kernels.run(f"{name}_{kind}", fields, **options)
        return out

    def forward(self, tensors: tuple[Tensor, ...], kind: str, **options: Any) -> Tensor:
        return self._generate("dplr_generating_", tensors, None, tensors[0].shape[0], kind, **options)

    def backward(
        self, g: Tensor, tensors: tuple[Tensor, ...], kind: str, **options: Any
    ) -> tuple[Tensor, ...]:
        c, p, q, b, w, t = tensors
        sizes = self._sizes(c, p, t)
        rank = sizes["rank"]
        factors = self._generate(
            "dplr_generating_factors_", tensors, g, c.shape[0] + 2 * rank, kind, **options
        )
        products = (c.shape[0] + rank) * (1 + rank)
        together = products if products in (4, 9) else 6
        segments = max(1, -(-t.shape[0] // SEGMENT))
        moments = torch.full((segments, products, 2, *w.shape), torch.nan, dtype=COMPLEX[kind])
        fields = {"factors": factors, "w": w, "t": t, "out": moments, "together": together, **sizes}
        self.kernels.run(f"dplr_generating_moments_{together}_{kind}", fields, **options)
        gradients = [torch.full_like(x, torch.nan) for x in (c, p, q, b, w)]
        named = dict(zip(("dc", "dp", "dq", "db", "dw"), gradients, strict=True))
        fields = {"c": c, "p": p, "q": q, "b": b, "moments": moments, **named, **sizes, "segments": segments}
        fields.pop("L")
        self.kernels.run(f"dplr_generating_gradients_{kind}", fields, **options)
        return tuple(gradients)


@pytest.fixture(scope="module")
def plain() -> Emulated:
    return Emulated(check=False)


@pytest.fixture(scope="module")
def checked() -> Emulated:
    return Emulated(check=True)


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


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_dense_resolvents(plain: Emulated, shape: tuple[int, ...], kind: str) -> None:
    tensors = system(*shape)
    assert error(plain.forward(as_kernels_take(tensors, kind), kind), resolvent(*tensors)) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 3, SEGMENT + 100)], ids=str)
def test_gradients(plain: Emulated, shape: tuple[int, ...], kind: str) -> None:
    """Against the Cauchy products' adjoint in torch, which gradcheck holds against differences."""
    tensors = as_kernels_take(system(*shape), kind)
    out = plain.forward(tensors, kind)
    g = gradient_of(out)
    wanted = adjoint.gradients(g, *wide(tensors), "torch")
    for got, want in zip(plain.backward(g.to(out.dtype), tensors, kind), wanted, strict=True):
        assert got.shape == want.shape
        assert want.numel() == 0 or error(got, want) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("channels", [1, 3])
def test_infinite_nodes(plain: Emulated, kind: str, channels: int) -> None:
    """The limit, exactly, in the value and in the gradients; large nodes on the way there."""
    c, p, q, b, w, _ = tensors = as_kernels_take(system(channels, 1, 3, 4, 1), kind)
    t = torch.tensor([math.inf, -math.inf, 1e12], dtype=w.dtype.to_real())
    tensors = (*tensors[:-1], t)
    out = plain.forward(tensors, kind)
    limit = 2 * (c * b).sum(-1, keepdim=True).real
    torch.testing.assert_close(out, limit.expand(out.shape).to(out.dtype), rtol=1e-5, atol=1e-5)
    assert (out[..., 0] == out[..., 1]).all()
    g = gradient_of(out[..., :1])
    at = plain.backward(g.to(out.dtype), (*tensors[:-1], t[:1]), kind)
    for got, want in zip(
        at, (2 * g.real * b.conj(), 0 * p, 0 * q, (2 * g.real * c.conj()).sum(0), 0 * w), strict=True
    ):
        torch.testing.assert_close(got.to(C128), want.to(C128), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("f32", 1e12), ("f32", 1e-13), ("f64", 1e90), ("f64", 1e-90)])
def test_poles_of_any_size(plain: Emulated, kind: str, size: float) -> None:
    """Fourth powers of the pole are beyond the numbers of this precision, at nodes where it counts."""
    c, p, q, b, w, dt, t = system(1, 1, 2, 4, 40)
    w[0, 0] = complex(-size, size)
    if size > 1:
        c[0, 0, 0] *= size
    else:
        t[0], p[0, 0, 0], q[0, 0, 0] = size, 0, 0
    given = as_kernels_take((c, p, q, b, w, dt, t), kind)
    assert error(plain.forward(given, kind), resolvent(c, p, q, b, w, dt, t)) < TOLERANCE[kind]
    g = gradient_of(torch.empty(1, 2, 40))
    wanted = adjoint.gradients(g, *wide(given), "torch")
    for got, want in zip(plain.backward(g.to(COMPLEX[kind]), given, kind), wanted, strict=True):
        largest = want.abs().max()  # whose square is no number either
        assert error(got / largest, want / largest) < TOLERANCE[kind]


def test_nan_stays_where_it_is(plain: Emulated) -> None:
    tensors = as_kernels_take(system(2, 1, 3, 5, 40), "f64")
    clean = plain.forward(tensors, "f64")
    tensors[3][1, 2], tensors[5][7] = torch.nan, torch.nan
    out = plain.forward(tensors, "f64")
    assert out[:, 1].isnan().all()
    assert out[:, :, 7].isnan().all()
    rest = [i for i in range(40) if i != 7]
    assert torch.equal(out[:, ::2][..., rest], clean[:, ::2][..., rest])


def test_no_poles(plain: Emulated) -> None:
    tensors = as_kernels_take(system(2, 1, 2, 0, 5), "f32")
    assert (plain.forward(tensors, "f32") == 0).all()


def test_a_zero_pivot_is_exchanged(plain: Emulated) -> None:
    """q is made such that 1 + y M_qp[0, 0] is 0 at t = 1, in a small matrix that is regular."""
    c, p, q, b, w, dt, t = system(1, 2, 1, 2, 1)
    t[:] = 1
    m = ops.cauchy(torch.eye(2, dtype=C128) * p[0], 1j * t.to(C128), w * dt / 2, backend="torch")
    turned = ops.cauchy(1j * torch.eye(2, dtype=C128) * p[0], 1j * t.to(C128), w * dt / 2, backend="torch")
    rows = torch.cat((m, turned)).flatten() * dt / 2  # of Re(q), then of Im(q)
    x = torch.linalg.pinv(torch.stack((rows.real, rows.imag))) @ torch.tensor([-1.0, 0], dtype=torch.float64)
    q[0, 0] = torch.complex(x[:2], x[2:])
    given = as_kernels_take((c, p, q, b, w, dt, t), "f64")
    assert error(plain.forward(given, "f64"), resolvent(c, p, q, b, w, dt, t)) < 1e-9
    g = gradient_of(torch.empty(1, 1, 1))
    for got, want in zip(plain.backward(g, given, "f64"), adjoint.gradients(g, *given, "torch"), strict=True):
        assert error(got, want) < 1e-9


def test_results_do_not_depend_on_the_order_of_threads(plain: Emulated) -> None:
    for shape in ((1, 1, 2, 5, SEGMENT + 30), (2, 2, 1, 5, 140)):
        tensors = as_kernels_take(system(*shape), "f32")
        outs = [plain.forward(tensors, "f32", order=order, seed=5) for order in ORDERS]
        g = gradient_of(outs[0]).to(torch.complex64)
        gradients = [plain.backward(g, tensors, "f32", order=order, seed=5) for order in ORDERS]
        for out, gradient in zip(outs, gradients, strict=True):
            assert torch.equal(out, outs[0])
            assert all(torch.equal(a, b) for a, b in zip(gradient, gradients[0], strict=True))


def check(emulated: Emulated, kind: str, order: str, seed: int) -> None:
    for shape in ((1, 1, 1, 34, 130), (1, 2, 1, 3, 20), (2, 3, 2, 3, 9)):
        tensors = as_kernels_take(system(*shape), kind)
        out = emulated.forward(tensors, kind, order=order, seed=seed)
        g = gradient_of(out)
        wanted = adjoint.gradients(g, *wide(tensors), "torch")
        gradients = emulated.backward(g.to(out.dtype), tensors, kind, order=order, seed=seed)
        for got, want in zip(gradients, wanted, strict=True):
            assert error(got, want) < TOLERANCE[kind]


@pytest.mark.checks("sanitizers", of="dplr_generating/cuda")
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(checked: Emulated, kind: str, order: str) -> None:
    check(checked, kind, order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", COMPLEX)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(8))
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    checked: Emulated, kind: str, order: str, seed: int
) -> None:
    check(checked, kind, order, seed)


def test_blocks_with_workspace_take_turns(plain: Emulated) -> None:
    tensors = as_kernels_take(system(1, 3, TURNS + 1, 2, 3), "f32")
    out = plain.forward(tensors, "f32")
    last = tuple(x[..., -1:, :].contiguous() if x.dim() > 1 else x for x in tensors)
    assert torch.equal(out[:, -1:], plain.forward(last, "f32"))


def test_launch_rules(plain: Emulated) -> None:
    """A block has 128 nodes of a head, or at most 32 poles and a segment of nodes; 512 blocks share workspace."""
    sizes = {"channels": 1, "rank": 1, "heads": 256, "N": 33, "L": 2049}
    generate = {**dict.fromkeys(("c", "p", "q", "b", "w", "t", "g", "out", "work")), "factors": 0, **sizes}
    moments = {**dict.fromkeys(("factors", "w", "t", "out")), **sizes, "together": 4}
    gradients = {**dict.fromkeys(("c", "p", "q", "b", "moments", "dc", "dp", "dq", "db", "dw")), **sizes}
    gradients = {**gradients, "segments": 5}
    gradients.pop("L")

    def blocks(kernel: str, fields: dict[str, Any]) -> tuple[int, int, int]:
        return plain.kernels.launch_rule(f"dplr_generating_{kernel}", fields)

    assert blocks("c1_r1_f32", {**generate, "any": 0}) == (17 * 256, 128, 0)
    assert blocks("factors_any_f64", {**generate, "any": 1}) == (512, 128, 0)
    assert blocks("any_f64", {**generate, "any": 1, "heads": 3}) == (17 * 3, 128, 0)
    assert blocks("moments_4_f32", moments) == (2 * 256 * 5, 128, 0)
    assert blocks("moments_6_f32", {**moments, "rank": 2, "together": 6, "N": 5}) == (256 * 2 * 5, 128, 0)
    assert blocks("gradients_f32", gradients) == (5 * 256 * 33 // 128, 128, 0)
