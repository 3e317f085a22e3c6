"""Cauchy products of every backend against the sum as written, in float64 and in many digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, gpu_backends, run
from ..sample import Sample, complexes, nodes, poles, real

every_backend = pytest.mark.parametrize("backend", backends("cauchy") + gpu_backends("cauchy"))


SAMPLES = {
    "cauchy-pairs": Sample("cauchy", ops.cauchy, (complexes(2, 3, 4), nodes(5), poles(3, 4))),
    "cauchy-plain-order": Sample(
        "cauchy",
        lambda v, z, w: ops.cauchy(v, z, w, conjugate=False, order=2),
        (complexes(3, 4), nodes(3, 5) + 0.1, poles(2, 3, 4)),
    ),
    "cauchy-real": Sample(
        "cauchy",
        lambda v, z, w: ops.cauchy(v, z, w, conjugate=False),
        (real(3, 4), real(5, seed=1).abs(), -1 - real(3, 4, seed=2).abs()),
    ),
    "cauchy_transpose": Sample(
        "cauchy_transpose", ops.cauchy_transpose, (complexes(2, 3, 5), nodes(5), poles(3, 4))
    ),
    "cauchy_transpose-order": Sample(
        "cauchy_transpose",
        lambda g, z, w: ops.cauchy_transpose(g, z, w, order=2),
        (real(3, 5), nodes(3, 5), poles(3, 4)),
    ),
    "cauchy_transpose-pairs": Sample(
        "cauchy_transpose",
        lambda g, z, w: ops.cauchy_transpose(g, z, w, conjugate=True),
        (complexes(2, 3, 5), nodes(5), poles(3, 4)),
    ),
    "cauchy_transpose-pairs-order": Sample(
        "cauchy_transpose",
        lambda g, z, w: ops.cauchy_transpose(g, z, w, conjugate=True, order=2),
        (complexes(3, 5), nodes(2, 3, 5) + 0.2, poles(3, 4)),
    ),
}


def oracle(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    """The sum as written."""
    v, z, w = (t.to(torch.complex128) for t in (v, z, w))
    difference = z.unsqueeze(-1) - w.unsqueeze(-2)
    out = (v.unsqueeze(-2) / difference**order).sum(-1)
    if conjugate:
        other = z.unsqueeze(-1) - w.conj().unsqueeze(-2)
        out = out + (v.conj().unsqueeze(-2) / other**order).sum(-1)
    return out


def s4_like(heads: int, pairs: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, nodes on the imaginary axis and HiPPO-LegS poles of S4 with steps of 0.001 to 0.1."""
    generator = torch.Generator().manual_seed(pairs)
    dt = torch.logspace(-3, -1, heads, dtype=torch.float64).unsqueeze(-1)
    angle = torch.linspace(0, 3.1, length, dtype=torch.float64)
    z = torch.complex(torch.zeros(heads, length, dtype=torch.float64), 2 * torch.tan(angle / 2) / dt)
    w = torch.complex(
        torch.full((heads, pairs), -0.5), -(torch.arange(pairs).float() ** 1.5).expand(heads, -1)
    )
    v = torch.randn(heads, pairs, dtype=torch.complex64, generator=generator)
    return v.to(dtype), z.to(dtype), w.to(dtype)


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("pairs", "length"), [(1, 1), (3, 33), (5, 64), (4, 101)])
@pytest.mark.parametrize("on_axis", [True, False])
def test_against_the_sum_as_written(
    backend: str, conjugate: bool, order: int, pairs: int, length: int, on_axis: bool
) -> None:
    v, z, w = s4_like(3, pairs, length, torch.complex128)
    z = z if on_axis else z + 0.3
    many = torch.stack((v, 2 * v.conj().resolve_conj()))
    got = run(ops.cauchy, many, z, w, conjugate=conjugate, order=order, backend=backend)
    want = oracle(many, z, w, conjugate, order)
    assert got.shape == want.shape == (2, 3, length)
    assert float((got - want).norm() / want.norm()) < 1e-12


@every_backend
@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_poles_next_to_the_axis_in_float32(backend: str, gap: float) -> None:
    """Relative to float64 of the same rounded inputs: what is lost is only what z - w loses."""
    v, z, w = s4_like(2, 16, 200, torch.complex64)
    w = torch.complex(torch.full_like(w.real, -gap), w.imag)
    got = run(ops.cauchy, v, z, w, backend=backend)
    want = oracle(v, z, w, True, 1)
    assert float((got - want).norm() / want.norm()) < 2e-6


@every_backend
def test_against_many_digits(backend: str) -> None:
    v, z, w = s4_like(1, 4, 20, torch.complex128)
    got = run(ops.cauchy, v, z, w, backend=backend)[0]
    with mpmath.workdps(40):
        for i in (0, 7, 19):
            total = mpmath.mpc(0)
            for weight, pole in zip(v[0].tolist(), w[0].tolist(), strict=True):
                node, weight, pole = mpmath.mpc(z[0, i].item()), mpmath.mpc(weight), mpmath.mpc(pole)
                total += weight / (node - pole) + mpmath.conj(weight) / (node - mpmath.conj(pole))
            assert abs(got[i].item() - complex(total)) < 1e-12 * abs(total)


@every_backend
@pytest.mark.parametrize("order", [1, 2])
def test_an_infinite_node_is_exactly_zero(backend: str, order: int) -> None:
    inf, nan = float("inf"), float("nan")
    z = torch.tensor([1j, complex(inf, 0), complex(0, -inf), complex(inf, nan)], dtype=torch.complex64)
    v, _, w = s4_like(2, 3, 1, torch.complex64)
    v, z, w = v.requires_grad_(), z.requires_grad_(), w.requires_grad_()
    out = run(ops.cauchy, v, z, w, order=order, backend=backend)
    assert (out[:, 1:] == 0).all()
    assert out[:, 0].abs().min() > 0
    moments = run(ops.cauchy_transpose, torch.ones_like(out), z, w, order=order, backend=backend)
    alone = run(ops.cauchy_transpose, torch.ones_like(out[:, :1]), z[:1], w, order=order, backend=backend)
    torch.testing.assert_close(moments, alone)
    for gradient in torch.autograd.grad((out.abs() ** 2).sum() + moments.abs().sum(), (v, z, w)):
        assert torch.isfinite(torch.view_as_real(gradient)).all()


@every_backend
@pytest.mark.parametrize("order", [1, 2])
def test_transpose_against_the_sum_as_written(backend: str, order: int) -> None:
    _, z, w = s4_like(3, 5, 77, torch.complex128)
    g = torch.randn(2, 3, 77, dtype=torch.complex128)
    want = (g.unsqueeze(-1) / (z.unsqueeze(-1) - w.unsqueeze(-2)) ** order).sum(-2)
    got = run(ops.cauchy_transpose, g, z, w, order=order, backend=backend)
    assert float((got - want).norm() / want.norm()) < 1e-12


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    v = torch.ones(shape, dtype=torch.complex64)
    z = torch.ones(6, dtype=torch.complex64) * 2j
    assert (run(ops.cauchy, v, z, -v, backend=backend) == 0).all()
    assert run(ops.cauchy, v, z[:0], -v, backend=backend).shape == (shape[0], 0)
    assert run(ops.cauchy_transpose, z, z, -v, backend=backend).shape == shape
    assert (run(ops.cauchy_transpose, z[:0], z[:0], -v, backend=backend) == 0).all()


def test_memory_stays_bounded() -> None:
    """The torch implementation holds a bounded block of node-pole pairs, not all of them (here 2^25, 256 MiB)."""
    from torch.profiler import ProfilerActivity, profile

    v, z, w = s4_like(128, 64, 4096, torch.complex64)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        ops.cauchy(v, z, w, backend="torch")
    largest = max(event.cpu_memory_usage for event in recorded.events())
    assert largest < 32 << 20


def test_bad_arguments() -> None:
    v, z, w = s4_like(2, 3, 5, torch.complex64)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        ops.cauchy(v, z, w, order=0)
    with pytest.raises(ValueError, match=r"v and w must have the same last dimension N"):
        ops.cauchy(v[:, :2], z, w)
    with pytest.raises(ValueError, match=r"g and z must have the same last dimension L"):
        ops.cauchy_transpose(v, z, w)
