"""The discretisation against the bilinear transform of dense matrices of conjugate pairs, and against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import native, ops, use_backend
from sequence_kernels.ops.dispatch import implementation
from sequence_kernels.ops.layouts import by_head

from ..sample import Sample, complexes, poles, real

C64, C128 = torch.complex64, torch.complex128
BACKENDS = ["torch", "cpu"] if native.unavailable("cpu") is None else ["torch"]
#: Copies, pairs, rank, heads.
SIZES = [(1, 1, 1, 1), (3, 5, 2, 6), (2, 9, 0, 2), (4, 33, 3, 4), (1, 4, 1, 40), (2, 0, 1, 2), (1, 3, 1, 0)]
#: Sizes at which low-rank terms so much larger have pivots of I + dt / 2 M off its diagonal, in some heads' columns.
PIVOTED, LARGE = [(1, 3, 5, 2), (1, 2, 7, 2)], 3.0
needs_native = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the native library")


def _discretize(rank: int) -> Sample:
    tensors = (poles(3, 4), 0.5 * complexes(rank, 3, 4, seed=1), complexes(3, 4, seed=3), 0.1 + real(3).abs())
    return Sample("dplr_discretize", ops.dplr_discretize, tensors)


SAMPLES = {
    "dplr_discretize": _discretize(rank=1),
    "dplr_discretize-rank-2": _discretize(rank=2),
}


def parameters(
    copies: int, pairs: int, rank: int, heads: int, dtype: torch.dtype = C128, low_rank: float = 1.0
) -> tuple[Tensor, ...]:
    """``low_rank``: what p is multiplied by."""
    torch.manual_seed(copies + 10 * pairs + 100 * rank)
    w = torch.complex(-0.1 - torch.rand(copies, pairs), 5 * torch.randn(copies, pairs)).to(dtype)
    p, b = torch.randn(rank, copies, pairs, dtype=dtype), torch.randn(copies, pairs, dtype=dtype)
    return w, low_rank * p, b, 0.01 + torch.rand(heads, dtype=torch.float64)


def whole(x: Tensor) -> Tensor:
    """Both of each conjugate pair."""
    return torch.cat((x, x.conj()), -1)


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("copies", [2, 6])
def test_is_the_bilinear_transform(backend: str, rank: int, copies: int) -> None:
    w, p, b, dt = parameters(copies, 4, rank, 6)
    with use_backend(backend):
        a_minus_one, lift, pull, drive = ops.dplr_discretize(w, p, b, dt, dtype=C128)
    w, p, b = (whole(by_head(t, 6)) for t in (w, p, b))
    matrix = torch.diag_embed(w) - torch.einsum("rhm,rhn->hmn", p, p.conj())
    half, eye = dt.view(-1, 1, 1) / 2, torch.eye(8)
    discrete = torch.linalg.solve(eye - half * matrix, eye + half * matrix)
    found = torch.diag_embed(1 + whole(a_minus_one)) + torch.einsum("rhm,rhn->hmn", whole(lift), whole(pull))
    torch.testing.assert_close(found, discrete)
    expected = torch.linalg.solve(eye - half * matrix, (2 * half * b.unsqueeze(-1)).to(C128)).squeeze(-1)
    torch.testing.assert_close(whole(drive), expected)


@needs_native
@pytest.mark.parametrize(("given", "dtype"), [(C64, C64), (C64, C128), (C128, C128), (C128, C64)])
def test_every_instruction_set_and_size(instruction_set: int, given: torch.dtype, dtype: torch.dtype) -> None:
    """complex128 within 1e-14 of plain torch, complex64 its rounding."""
    large = [parameters(*size, given, LARGE) for size in PIVOTED]
    for arguments in [*(parameters(*size, given) for size in SIZES), *large]:
        adjoint = implementation("dplr_discretize_backward", "cpu")
        assert_adjoint(adjoint, arguments, dtype == C128, 1e-13)
        with use_backend("torch"):
            expected = ops.dplr_discretize(*arguments, dtype=dtype)
        for got, want in zip(ops.dplr_discretize(*arguments, dtype=dtype), expected, strict=True):
            assert got.dtype == dtype
            scale = float(want.abs().max()) if want.numel() else 1.0
            torch.testing.assert_close(got, want, rtol=0, atol=(1e-14 if dtype == C128 else 1e-7) * scale)


def gradients_by_autograd(gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of plain torch's forward pass, in double: what every adjoint is held against."""
    leaves = [t.detach().to(C128 if t.is_complex() else t.dtype).clone().requires_grad_() for t in inputs]
    results = implementation("dplr_discretize", "torch")(*leaves, True)
    wide = [g.to(C128) for g in gradients]
    return torch.autograd.grad(results, leaves, wide, materialize_grads=True, allow_unused=True)


def assert_adjoint(run: Callable[..., Any], inputs: Sequence[Tensor], wide: bool, tolerance: float) -> None:
    """``run`` is ``dplr_discretize_backward``."""
    pairs, rank, heads = inputs[0].shape[1], len(inputs[1]), len(inputs[3])
    shapes = ((heads, pairs), (rank, heads, pairs), (rank, heads, pairs), (heads, pairs))
    gradients = [torch.randn(s, dtype=C128 if wide else C64) for s in shapes]
    found = run(*gradients, *inputs, wide)
    for got, want, like in zip(found, gradients_by_autograd(gradients, inputs), inputs, strict=True):
        assert (got.shape, got.dtype) == (like.shape, like.dtype)
        limit = 1e-7 if got.dtype == C64 else tolerance
        assert float((got - want).norm()) <= limit * float(want.norm())


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_adjoint_is_that_of_autograd(backend: str, size: tuple[int, int, int, int]) -> None:
    """Heads that share copies too, and both precisions on both sides."""
    for given, wide in ((C64, True), (C128, False), (C128, True)):
        run = implementation("dplr_discretize_backward", backend)
        assert_adjoint(run, parameters(*size, given), wide, 1e-13)


@needs_native
def test_the_same_bits_for_any_number_of_threads() -> None:
    arguments = parameters(1200, 16, 1, 1200)  # enough to be shared out
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ops.dplr_discretize(*arguments))
        results[-1] += implementation("dplr_discretize_backward", "cpu")(*results[0][:4], *arguments, True)
    torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found, results[0], strict=True))


def test_derivatives() -> None:
    arguments = [t.requires_grad_() for t in parameters(2, 2, 2, 4)]

    assert torch.autograd.gradcheck(ops.dplr_discretize, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(ops.dplr_discretize, arguments, fast_mode=True)


def test_conjugated_strided_and_mixed_parameters() -> None:
    w, p, b, dt = parameters(3, 4, 1, 3)
    want = ops.dplr_discretize(w, p, b, dt, dtype=C128)
    turned = [t.conj().resolve_conj().conj() for t in (w, p, b)]
    strided = [t.mT.contiguous().mT for t in (w, p, b)]
    for w2, p2, b2 in (turned, strided):
        for got, expected in zip(ops.dplr_discretize(w2, p2, b2, dt, dtype=C128), want, strict=True):
            torch.testing.assert_close(got, expected)
    for got, expected in zip(ops.dplr_discretize(w, p.to(C64), b, dt, dtype=C128), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_the_kernel_itself_refuses_what_would_leave_its_memory() -> None:
    run = torch.ops.sequence_kernels_native.dplr_discretize.default
    w, p, b, dt = parameters(2, 4, 1, 4)
    run(w, p, b, dt, True)
    for wrong in (
        (w, p, b, dt[:3], True),
        (w, p[:, :1].contiguous(), b, dt, True),
        (w, p, b[:1], dt, True),
        (w, p, b, dt.float(), True),
        (w.to(C64), p, b, dt, True),
        (w, p[0], b, dt, True),
        (w.mT.contiguous().mT, p, b, dt, True),
    ):
        with pytest.raises(RuntimeError, match="dplr_discretize expects"):
            run(*wrong)
