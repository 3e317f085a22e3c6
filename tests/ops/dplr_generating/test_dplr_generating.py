"""S4's generating function of every backend against dense resolvents of conjugate pairs, in complex128."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, gpu_backends, run
from ..sample import Sample, complexes, poles, real

C128 = torch.complex128
every_backend = pytest.mark.parametrize(
    "backend", backends("dplr_generating") + gpu_backends("dplr_generating")
)


def _generating(rank: int) -> Sample:
    tensors = (
        complexes(2, 3, 4),
        0.5 * complexes(rank, 3, 4, seed=1),
        0.5 * complexes(rank, 3, 4, seed=1).conj_physical(),
        complexes(3, 4, seed=3),
        poles(3, 4),
        0.5 + real(3, seed=4).abs(),
        2 * real(5, seed=5),
    )
    return Sample("dplr_generating", ops.dplr_generating, tensors)


SAMPLES = {
    "dplr_generating": _generating(rank=1),
    "dplr_generating-rank-2": _generating(rank=2),
}


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


def resolvent(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, dt: Tensor, t: Tensor) -> Tensor:
    """The definition with dense matrices."""
    a = torch.diag_embed(whole(w)) - torch.einsum("rhm,rhn->hmn", whole(p), whole(q))
    z = 2j * t / dt.unsqueeze(-1)
    identity = torch.eye(a.shape[-1], dtype=a.dtype)
    right = whole(b)[:, None, :, None].expand(*z.shape, -1, 1)
    x = torch.linalg.solve(z[..., None, None] * identity - a.unsqueeze(1), right).squeeze(-1)
    return (1 + 1j * t) * torch.einsum("chn,hln->chl", whole(c), x)


def system(channels: int, rank: int, heads: int, pairs: int, length: int) -> tuple[Tensor, ...]:
    torch.manual_seed(channels + 10 * rank + pairs)
    c, p = torch.randn(channels, heads, pairs, dtype=C128), torch.randn(rank, heads, pairs, dtype=C128)
    w = torch.complex(-0.1 - torch.rand(heads, pairs), 3 * torch.randn(heads, pairs)).to(C128)
    dt, t = 0.1 + torch.rand(heads, dtype=torch.float64), 2 * torch.randn(length, dtype=torch.float64)
    return c, p, p.conj().resolve_conj(), torch.randn(heads, pairs, dtype=C128), w, dt, t


def error(got: Tensor, want: Tensor) -> float:
    return float((got.detach().to(want.dtype) - want).norm() / want.norm())


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize(("channels", "length"), [(1, 1), (3, 17), (2, 530)])
def test_against_dense_resolvents(backend: str, rank: int, channels: int, length: int) -> None:
    tensors = system(channels, rank, 2, 5, length)
    want = resolvent(*tensors)
    assert error(run(ops.dplr_generating, *tensors, backend=backend), want) < 1e-13
    single = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in tensors]
    got = run(ops.dplr_generating, *single, backend=backend)
    assert got.dtype == torch.complex64
    assert error(got, want) < 2e-5  # random poles and low ranks: the systems' conditions are in the hundreds


@every_backend
def test_a_zero_pivot_is_exchanged(backend: str) -> None:
    """q is made such that 1 + cos M_qp[0, 0] is 0 at t = 1, in a small matrix that is regular."""
    c, p, q, b, w, dt, _ = system(1, 2, 1, 4, 1)
    t = torch.ones(1, dtype=torch.float64)
    m = ops.cauchy(p[0].new_ones(4).diag_embed() * p[0, 0], 1j * t.to(C128), w[0] * dt / 2, backend="torch")
    # M_qp[0, 0] = sum_n Re(q_n) m_n + Im(q_n) m'_n is linear in q over the reals: two of them meet Re and Im
    turned = ops.cauchy(1j * p[0, 0].diag_embed(), 1j * t.to(C128), w[0] * dt / 2, backend="torch")
    rows = torch.cat((m, turned)).squeeze(-1) * dt / 2
    x = torch.linalg.pinv(torch.stack((rows.real, rows.imag))) @ torch.tensor([-1.0, 0], dtype=torch.float64)
    q[0, 0] = torch.complex(x[:4], x[4:])
    tensors = (c, p, q, b, w, dt, t)
    assert error(run(ops.dplr_generating, *tensors, backend=backend), resolvent(*tensors)) < 1e-9


@every_backend
@pytest.mark.parametrize("dtype", [torch.complex64, C128])
def test_infinite_nodes(backend: str, dtype: torch.dtype) -> None:
    c, p, q, b, w, dt, _ = system(2, 1, 3, 4, 1)
    t = torch.tensor([math.inf, 0.3, -math.inf, 1e12], dtype=torch.float64)
    tensors = [
        x.to(dtype if x.is_complex() else dtype.to_real()).requires_grad_() for x in (c, p, q, b, w, dt, t)
    ]
    out = run(ops.dplr_generating, *tensors, backend=backend)
    limit = ((c * b).sum(-1).real * dt).to(C128)
    for i in (0, 2, 3):
        torch.testing.assert_close(out[..., i].to(C128), limit, rtol=1e-5, atol=1e-5)
    assert error(out[..., 1:2], resolvent(c, p, q, b, w, dt, t[1:2]).detach()) < (
        2e-6 if dtype != C128 else 1e-14
    )
    gradients = torch.autograd.grad(out, tensors, torch.randn_like(out), create_graph=True)
    assert (gradients[-1][[0, 2]] == 0).all()
    again = torch.autograd.grad(sum(g.abs().square().sum() for g in gradients), tensors)
    assert all(g.isfinite().all() for g in (*gradients, *again))


@every_backend
def test_gradients_at_infinity_are_the_limit(backend: str) -> None:
    *tensors, _ = system(2, 2, 3, 4, 1)
    weights = torch.randn(2, 3, 1, dtype=C128)

    def gradients(t: float) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = run(ops.dplr_generating, *leaves, torch.tensor([t], dtype=torch.float64), backend=backend)
        return torch.autograd.grad(out, leaves, weights)

    for at, near in zip(gradients(math.inf), gradients(1e9), strict=True):
        torch.testing.assert_close(at, near, rtol=1e-6, atol=1e-6)


@every_backend
def test_empty_dimensions(backend: str) -> None:
    for channels, heads, pairs, length in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)]:
        tensors = [x.requires_grad_() for x in system(channels, 1, heads, pairs, length)]
        out = run(ops.dplr_generating, *tensors, backend=backend)
        assert out.shape == (channels, heads, length)
        if pairs == 0:
            assert (out == 0).all()
        out.abs().sum().backward()


@every_backend
@pytest.mark.parametrize("size", [1e12, 1e-13])
def test_poles_of_any_size_in_float32(backend: str, size: float) -> None:
    """Fourth powers of the pole are beyond the numbers of float32, at nodes where it counts."""
    c, p, q, b, w, dt, t = system(1, 1, 2, 4, 40)
    w[0, 0] = complex(-size, size)
    if size < 1:
        t[0], p[0, 0, 0], q[0, 0, 0] = 0, 0, 0
    single = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in (c, p, q, b, w, dt, t)]
    assert error(run(ops.dplr_generating, *single, backend=backend), resolvent(c, p, q, b, w, dt, t)) < 1e-5


def test_bad_arguments() -> None:
    c, p, q, b, w, dt, t = system(2, 1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"q must have shape \(R=1, H=3, N=4\), got \(2, 3, 4\)"):
        ops.dplr_generating(c, p, torch.cat((q, q)), b, w, dt, t)
    with pytest.raises(TypeError, match=r"b must be one of complex128, got torch\.complex64"):
        ops.dplr_generating(c, p, q, b.to(torch.complex64), w, dt, t)
    with pytest.raises(ValueError, match=r"dt must have shape \(H=3\), got \(1,\)"):
        ops.dplr_generating(c, p, q, b, w, dt[:1], t)
