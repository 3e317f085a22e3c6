"""The discretisation of diagonal models against matrix exponentials and the bilinear transform, in high precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from sequence_kernels import native, ops, use_backend
from sequence_kernels.ops.dispatch import implementation
from sequence_kernels.ops.layouts import by_head

from ..sample import Sample, complexes, poles, real

C64, C128 = torch.complex64, torch.complex128
BACKENDS = ["torch", "cpu"] if native.unavailable("cpu") is None else ["torch"]
#: Copies, pairs, heads.
SIZES = [(1, 1, 1), (3, 5, 6), (2, 9, 2), (4, 133, 4), (1, 4, 40), (2, 0, 2), (1, 3, 0)]
needs_native = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native library")


def _discretize(method: str) -> Sample:
    tensors = (poles(3, 4), complexes(3, 4, seed=3), 0.1 + real(3).abs())
    return Sample("diagonal_discretize", lambda *args: ops.diagonal_discretize(*args, method=method), tensors)


SAMPLES = {
    "diagonal_discretize": _discretize("zoh"),
    "diagonal_discretize-bilinear": _discretize("bilinear"),
}


def parameters(copies: int, pairs: int, heads: int, dtype: torch.dtype = C128) -> tuple[Tensor, ...]:
    """Of tiny and large numbers of decay and turns in a step; some grow."""
    torch.manual_seed(copies + 10 * pairs)
    sizes = 10 ** (torch.rand(copies, pairs, dtype=torch.float64) * 6 - 4)
    a = torch.complex(sizes * (0.2 - torch.rand_like(sizes)), sizes * torch.randn_like(sizes)).to(dtype)
    return a, torch.randn(copies, pairs, dtype=dtype), 0.01 + torch.rand(heads, dtype=torch.float64)


def exact(a: complex, b: complex, dt: float, bilinear: bool) -> tuple[complex, complex]:
    with mpmath.workdps(40):
        z, drive = mpmath.mpc(a) * dt, mpmath.mpc(b) * dt
        phi = 1 / (1 - z / 2) if bilinear else mpmath.expm1(z) / z if z else mpmath.mpf(1)
        return complex(z * phi), complex(drive * phi)


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_is_what_the_formulas_say(backend: str, method: str) -> None:
    """To 15 digits of each number, from steps in which nothing happens to those of many turns."""
    a, b, dt = parameters(3, 40, 6)
    a[0, 0] = 0
    found = ops.diagonal_discretize(a, b, dt, method=method, backend=backend)
    rows = zip(by_head(a, 6).flatten(), by_head(b, 6).flatten(), dt.repeat_interleave(40), strict=True)
    want = torch.tensor([exact(*(x.item() for x in row), method == "bilinear") for row in rows], dtype=C128)
    for got, expected in zip(found, want.T, strict=True):
        error = (got.flatten() - expected).abs()
        assert float((error / expected.abs().clamp(min=1e-300)).max()) < (
            2e-14 if backend == "torch" else 4e-15
        )


def gradients_by_autograd(gradients: Sequence[Tensor], inputs: Sequence[Tensor], bilinear: bool) -> Any:
    """Of plain torch's forward pass, in double: what every adjoint is held against."""
    leaves = [t.detach().to(C128 if t.is_complex() else t.dtype).clone().requires_grad_() for t in inputs]
    results = implementation("diagonal_discretize", "torch")(*leaves, bilinear, True)
    wide = [g.to(C128) for g in gradients]
    return torch.autograd.grad(results, leaves, wide, materialize_grads=True, allow_unused=True)


def assert_adjoint(run: Callable[..., Any], inputs: Sequence[Tensor], bilinear: bool, wide: bool) -> None:
    """``run`` is ``diagonal_discretize_backward``."""
    shape = len(inputs[2]), inputs[0].shape[1]
    gradients = [torch.randn(shape, dtype=C128 if wide else C64) for _ in range(2)]
    found = run(*gradients, *inputs, bilinear, wide)
    wanted = gradients_by_autograd(gradients, inputs, bilinear)
    for got, want, like in zip(found, wanted, inputs, strict=True):
        assert (got.shape, got.dtype) == (like.shape, like.dtype)
        limit = 2e-7 if got.dtype == C64 else 1e-13
        assert float((got - want).norm()) <= limit * float(want.norm())


def assert_results(run: Callable[..., Any], inputs: Sequence[Tensor], bilinear: bool, wide: bool) -> None:
    """``run`` is ``diagonal_discretize``."""
    want = implementation("diagonal_discretize", "torch")(*inputs, bilinear, wide)
    for got, expected in zip(run(*inputs, bilinear, wide), want, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        torch.testing.assert_close(got, expected, rtol=0, atol=(1e-14 if wide else 1e-7) * scale)


KINDS = [
    (given, wide, bilinear) for given in (C64, C128) for wide in (True, False) for bilinear in (True, False)
]


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_adjoint_is_that_of_autograd(backend: str, size: tuple[int, int, int]) -> None:
    """Heads that share copies too, and both precisions on both sides."""
    for given, wide, bilinear in KINDS:
        run = implementation("diagonal_discretize_backward", backend)
        assert_adjoint(run, parameters(*size, given), bilinear, wide)


@needs_native
def test_every_instruction_set_and_size(instruction_set: int) -> None:
    for size in SIZES:
        for given, wide, bilinear in KINDS:
            inputs = parameters(*size, given)
            assert_results(implementation("diagonal_discretize", "cpu"), inputs, bilinear, wide)
            assert_adjoint(implementation("diagonal_discretize_backward", "cpu"), inputs, bilinear, wide)


@needs_native
def test_the_same_bits_for_any_number_of_threads() -> None:
    arguments = parameters(1200, 16, 1200)  # enough to be shared out
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found = ops.diagonal_discretize(*arguments)
        adjoint = implementation("diagonal_discretize_backward", "cpu")
        results.append((*found, *adjoint(*found, *arguments, False, True)))
    torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found, results[0], strict=True))


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_derivatives(method: str) -> None:
    arguments = [t.requires_grad_() for t in parameters(2, 3, 4)]

    def run(*args: Tensor) -> tuple[Tensor, Tensor]:
        return ops.diagonal_discretize(*args, method=method)

    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_conjugated_strided_and_mixed_parameters() -> None:
    a, b, dt = parameters(3, 4, 3)
    want = ops.diagonal_discretize(a, b, dt)
    for a2, b2 in ([t.conj().resolve_conj().conj() for t in (a, b)], [t.mT.contiguous().mT for t in (a, b)]):
        for got, expected in zip(ops.diagonal_discretize(a2, b2, dt), want, strict=True):
            torch.testing.assert_close(got, expected)
    for got, expected in zip(ops.diagonal_discretize(a, b.to(C64), dt), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with (
        use_backend("torch"),
        pytest.raises(ValueError, match=r"method must be one of \('zoh', 'bilinear'\), got 'dss'"),
    ):
        ops.diagonal_discretize(a, b, dt, method="dss")


@needs_native
def test_the_kernel_itself_refuses_what_would_leave_its_memory() -> None:
    run = torch.ops.sequence_kernels_native.diagonal_discretize.default
    a, b, dt = parameters(2, 4, 4)
    run(a, b, dt, False, True)
    for wrong in (
        (a, b, dt[:3]),
        (a, b[:1], dt),
        (a, b, dt.float()),
        (a.to(C64), b, dt),
        (a[0], b[0], dt),
        (a.mT.contiguous().mT, b, dt),
    ):
        with pytest.raises(RuntimeError, match="diagonal_discretize expects"):
            run(*wrong, False, True)
