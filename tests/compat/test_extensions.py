"""The functions that S4 code expects of its CUDA extensions, against sums written out in complex128."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sequence_kernels.compat import extensions

#: Sizes that the CUDA extensions refuse or get wrong (1, 3, 33, 100), and others; half-sizes N of the state.
N = [1, 2, 3, 16, 33, 64, 100]
L = [1, 2, 31, 64, 257]
PRECISION = {torch.complex64: 2e-6, torch.complex128: 1e-12}
every_size = pytest.mark.parametrize(
    ("n", "length"), [(n, L[i % 5]) for i, n in enumerate(N)] + [(4, k) for k in L]
)
every_dtype = pytest.mark.parametrize("dtype", PRECISION)


def plain(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return (v[:, None] / (z[:, None] - w[:, None])).sum(-1)


def symmetric(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    return plain(v, z, w) + plain(v.conj(), z, w.conj())


def vandermonde(v: Tensor, x: Tensor, length: int) -> Tensor:
    return 2 * (v[..., None] * torch.exp(x[..., None] * torch.arange(length))).sum(-2).real


def poles(n: int) -> Tensor:
    return torch.complex(-0.5 - torch.rand(3, n).double(), 3 * torch.randn(3, n).double())


def nodes(length: int) -> Tensor:
    """z of the unit circle's upper half, as S4 code makes them: the last of an even length is huge."""
    omega = torch.exp(-2j * torch.pi * torch.arange(length, dtype=torch.float64) / max(2 * (length - 1), 1))
    return 2 * (1 - omega) / (1 + omega)


def agree(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype in (dtype, dtype.to_real())
    error = torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)
    assert error < PRECISION[dtype]


@every_dtype
@every_size
@pytest.mark.parametrize(
    ("forward", "backward", "oracle"),
    [
        (extensions.cauchy_mult_fwd, extensions.cauchy_mult_bwd, plain),
        (extensions.cauchy_mult_sym_fwd, extensions.cauchy_mult_sym_bwd, symmetric),
    ],
)
def test_cauchy(
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, Tensor]],
    oracle: Callable[..., Tensor],
    n: int,
    length: int,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(n + length)
    v, w, z = torch.randn(3, n, dtype=torch.complex128), poles(n), nodes(length)
    v, w, z = (t.to(dtype) for t in (v, w, z))
    exact = [t.to(torch.complex128).requires_grad_() for t in (v, w)]
    expected = oracle(exact[0], z.to(torch.complex128), exact[1])
    agree(forward(v, z, w), expected, dtype)
    g = torch.randn(3, length, dtype=dtype)
    for actual, want in zip(
        backward(v, z, w, g), torch.autograd.grad(expected, exact, g.to(torch.complex128)), strict=True
    ):
        agree(actual, want, dtype)


@every_dtype
@every_size
def test_log_vandermonde(n: int, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n + length)
    v, x = torch.randn(3, n, dtype=torch.complex128).to(dtype), (0.05 * poles(n)).to(dtype)
    exact = [t.to(torch.complex128).requires_grad_() for t in (v, x)]
    expected = vandermonde(*exact, length)
    agree(extensions.vand_log_mult_sym_fwd(v, x, length), expected, dtype)
    g = torch.randn(3, length, dtype=dtype.to_real())
    gradients = extensions.vand_log_mult_sym_bwd(v, x, g)
    for actual, want in zip(gradients, torch.autograd.grad(expected, exact, g.double()), strict=True):
        if length > 1 or want.abs().max() > 0:  # dx of a single element is 0
            agree(actual, want, dtype)
        else:
            assert torch.equal(actual, torch.zeros_like(actual))


def test_second_derivatives_through_a_function_that_wraps_them() -> None:
    """The wrappers of S4 code are autograd functions: what they call in ``backward`` must itself be differentiable."""

    class Wrapped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v, z, w):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(v, z, w)
            return extensions.cauchy_mult_sym_fwd(v, z, w)

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            dv, dw = extensions.cauchy_mult_sym_bwd(*ctx.saved_tensors, g)
            return dv, None, dw

    torch.manual_seed(0)
    v, w, z = (
        torch.randn(3, 5, dtype=torch.complex128, requires_grad=True),
        poles(5).requires_grad_(),
        nodes(7)[:-1],
    )
    assert torch.autograd.gradgradcheck(lambda v, w: Wrapped.apply(v, z, w), (v, w))


def test_the_fallbacks_take_the_shapes_that_s4_code_gives_them() -> None:
    torch.manual_seed(0)
    v, w, z = torch.randn(2, 2, 3, 5, dtype=torch.complex128), poles(5), nodes(9)[:-1]
    expected = torch.stack([symmetric(each, z, w) for each in v.flatten(0, 1)]).unflatten(0, (2, 2))
    for function in (extensions.cauchy, extensions.cauchy_mult):
        agree(function(v, z, w), expected, torch.complex128)
    one = extensions.cauchy_mult(v, z[None, :1], w, symmetric=False)
    agree(
        one,
        torch.stack([plain(each, z[:1], w) for each in v.flatten(0, 1)]).unflatten(0, (2, 2)),
        torch.complex128,
    )

    x, u = 0.1 * poles(5), torch.randn(4, 3, 11, dtype=torch.complex128)
    want = torch.einsum("bhl,hn,hnl->bhn", u, v[0, 0], torch.exp(x[..., None] * torch.arange(11)))
    agree(extensions.log_vandermonde_transpose(u, v[0, 0], x, 11), want, torch.complex128)
    agree(extensions.log_vandermonde(v[0, 0], x, 11), vandermonde(v[0, 0], x, 11), torch.complex128)
    plain_sum = (v[0, 0][..., None] * torch.exp(x[..., None] * torch.arange(11))).sum(-2)
    agree(extensions.log_vandermonde(v[0, 0], x, 11, conj=False), plain_sum, torch.complex128)
    agree(extensions.cauchy(v[0, 0], z, w, conj=False), plain(v[0, 0], z, w), torch.complex128)
