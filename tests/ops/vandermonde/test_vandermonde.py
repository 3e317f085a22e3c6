"""Vandermonde products of every backend against the sum as written, in float64 and in many digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, gpu_backends, run
from ..sample import Sample, complexes, exponents, real

every_backend = pytest.mark.parametrize("backend", backends("vandermonde") + gpu_backends("vandermonde"))


SAMPLES = {
    "vandermonde-pairs": Sample(
        "vandermonde", lambda v, x: ops.vandermonde(v, x, 7), (complexes(2, 3, 4), exponents(3, 4))
    ),
    "vandermonde-plain-power": Sample(
        "vandermonde",
        lambda v, x: ops.vandermonde(v, x, 6, conjugate=False, power=2),
        (complexes(3, 4), exponents(2, 3, 4)),
    ),
    "vandermonde-real": Sample(
        "vandermonde",
        lambda v, x: ops.vandermonde(v, x, 6, conjugate=False),
        (real(3, 4), -real(3, 4, seed=1).abs()),
    ),
    "vandermonde-mixed": Sample(
        "vandermonde", lambda v, x: ops.vandermonde(v, x, 6, power=1), (real(3, 4), exponents(4))
    ),
    "vandermonde_transpose": Sample(
        "vandermonde_transpose", ops.vandermonde_transpose, (complexes(3, 7), exponents(2, 3, 4))
    ),
    "vandermonde_transpose-real-power": Sample(
        "vandermonde_transpose",
        lambda g, x: ops.vandermonde_transpose(g, x, power=1),
        (real(2, 3, 7), exponents(3, 4)),
    ),
}


def oracle(v: Tensor, x: Tensor, length: int, conjugate: bool, power: int) -> Tensor:
    """The sum as written, with all N L exponentials."""
    v, x = v.to(torch.complex128), x.to(torch.complex128)
    position = torch.arange(length, dtype=torch.float64)
    out = (v.unsqueeze(-1) * torch.exp(x.unsqueeze(-1) * position)).sum(-2) * position.pow(power)
    return 2 * out.real if conjugate else out


def hippo_like(heads: int, pairs: int, dt: float) -> tuple[Tensor, Tensor]:
    """Weights and exponents of S4D's linear initialisation at one step size, rounded to complex64."""
    generator = torch.Generator().manual_seed(heads + pairs)
    a = torch.complex(
        torch.full((heads, pairs), -0.5), torch.pi * torch.arange(pairs).float().expand(heads, -1)
    )
    return torch.randn(heads, pairs, dtype=torch.complex64, generator=generator), a * dt


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("power", [0, 1, 3])
@pytest.mark.parametrize(("pairs", "length"), [(1, 1), (1, 2), (3, 63), (5, 64), (4, 65), (2, 500)])
def test_against_the_sum_as_written(
    backend: str, conjugate: bool, power: int, pairs: int, length: int
) -> None:
    v, x = (t.to(torch.complex128) for t in hippo_like(3, pairs, 0.05))
    got = run(ops.vandermonde, v, x, length, conjugate=conjugate, power=power, backend=backend)
    want = oracle(v, x, length, conjugate, power)
    assert got.shape == want.shape
    assert got.is_complex() is not conjugate
    assert float((got - want).norm()) <= 1e-12 * max(float(want.norm()), 1e-30)


@every_backend
def test_against_many_digits(backend: str) -> None:
    v, x = (t.to(torch.complex128) for t in hippo_like(1, 4, 0.1))
    got = run(ops.vandermonde, v, x, 1000, backend=backend)[0]
    with mpmath.workdps(40):
        for position in (0, 1, 31, 32, 777, 999):
            terms = (
                mpmath.mpc(c) * mpmath.exp(mpmath.mpc(e) * position)
                for c, e in zip(v[0].tolist(), x[0].tolist(), strict=True)
            )
            want = 2 * mpmath.re(mpmath.fsum(terms))
            assert abs(got[position].item() - float(want)) < 1e-12


@every_backend
@pytest.mark.parametrize(("dt", "length"), [(1e-4, 1 << 17), (1e-2, 1 << 14), (1.0, 4096)])
def test_float32_keeps_its_digits_over_long_sequences(backend: str, dt: float, length: int) -> None:
    """Norm-wise within 2e-6 of float64, where the naive phase in float32 is off by up to 1e-2."""
    v, x = hippo_like(2, 16, dt)
    got = run(ops.vandermonde, v, x, length, backend=backend)
    want = ops.vandermonde(v.to(torch.complex128), x.to(torch.complex128), length, backend="torch")
    assert float((got - want).norm() / want.norm()) < 2e-6


@every_backend
@pytest.mark.parametrize("power", [0, 2])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 500])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_transpose_against_the_sum_as_written(
    backend: str, power: int, length: int, dtype: torch.dtype
) -> None:
    _, x = hippo_like(3, 5, 0.05)
    x = x.to(torch.complex128)
    g = torch.randn(2, 3, length, dtype=dtype, generator=torch.Generator().manual_seed(length))
    position = torch.arange(length, dtype=torch.float64)
    want = (g.unsqueeze(-2) * position.pow(power) * torch.exp(x.unsqueeze(-1) * position)).sum(-1)
    got = run(ops.vandermonde_transpose, g, x, power=power, backend=backend)
    assert got.shape == want.shape
    assert float((got - want).norm()) <= 1e-12 * float(want.norm()) + 1e-30


@every_backend
def test_the_two_are_transposes(backend: str) -> None:
    """<g, V v> = <VT g, v> without conjugation, for the plain product."""
    v, x = (t.to(torch.complex128) for t in hippo_like(3, 4, 0.1))
    g = torch.randn(3, 90, dtype=torch.complex128)
    left = (g * run(ops.vandermonde, v, x, 90, conjugate=False, backend=backend)).sum()
    right = (run(ops.vandermonde_transpose, g, x, backend=backend) * v).sum()
    torch.testing.assert_close(left, right)


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4)])
def test_empty_dimensions(backend: str, shape: tuple[int, ...]) -> None:
    v = torch.ones(shape, dtype=torch.complex64)
    out = run(ops.vandermonde, v, v, 6, backend=backend)
    assert out.shape == (*shape[:-1], 6)
    assert (out == 0).all()
    moments = run(ops.vandermonde_transpose, torch.ones(*shape[:-1], 6), v, backend=backend)
    assert moments.shape == shape


@every_backend
def test_length_zero_is_empty(backend: str) -> None:
    v, x = hippo_like(3, 4, 0.1)
    v.requires_grad_()
    out = run(ops.vandermonde, v, x, 0, backend=backend)
    assert out.shape == (3, 0)
    out.sum().backward()
    assert v.grad is not None
    assert (v.grad == 0).all()
    assert (run(ops.vandermonde_transpose, torch.ones(3, 0), x, backend=backend) == 0).all()


def test_bad_sizes_and_powers() -> None:
    v, x = hippo_like(3, 4, 0.1)
    with pytest.raises(ValueError, match="L must be at least 0, got -1"):
        ops.vandermonde(v, x, -1)
    with pytest.raises(TypeError, match="L must be an int, got float"):
        ops.vandermonde(v, x, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="power must be at least 0, got -2"):
        ops.vandermonde(v, x, 3, power=-2)
    with pytest.raises(ValueError, match=r"same last dimension N, got \(3, 4\) and \(3, 2\)"):
        ops.vandermonde(v, x[:, :2], 3)
    with pytest.raises(ValueError, match=r"must broadcast together, got v \(3, 4\), x \(2, 4\)"):
        ops.vandermonde(v, x[:2], 3)
    with pytest.raises(TypeError, match=r"x must be one of float32, .*, got torch.float16"):
        ops.vandermonde(v, x.real.half(), 3)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("real", [False, True])
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype, real: bool) -> None:
    """The result is float32's, rounded; a gradient is that of the float32 call for the same cotangent."""
    v, x = (t.real if real else t for t in hippo_like(2, 16, 0.01))
    v, x = v.clone().requires_grad_(), x.clone().requires_grad_()
    options = {"conjugate": not real, "backend": backend}
    wide = run(ops.vandermonde, v, x, 5000, **options)
    half = run(ops.vandermonde, v, x, 5000, dtype=dtype, **options)
    assert half.dtype == dtype
    assert torch.equal(half, wide.to(dtype))
    g = torch.randn_like(wide).to(dtype)
    for got, want in zip(
        torch.autograd.grad(half, (v, x), g), torch.autograd.grad(wide, (v, x), g.float()), strict=True
    ):
        assert torch.equal(got, want)
    exact = oracle(v.detach(), x.detach(), 5000, not real, 0).real
    assert float((half.detach() - exact).norm() / exact.norm()) < 0.5 * torch.finfo(dtype).eps


def test_half_precision_wants_a_real_result() -> None:
    v, x = hippo_like(1, 2, 0.1)
    with pytest.raises(ValueError, match=r"dtype=torch\.float16 needs a real result"):
        ops.vandermonde(v, x, 3, conjugate=False, dtype=torch.float16)
    with pytest.raises(TypeError, match=r"dtype must be None or one of float16, bfloat16, got torch\.int8"):
        ops.vandermonde(v, x, 3, dtype=torch.int8)
