"""Vandermonde products of drawn shapes, dtypes and layouts against the sums as written."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from sequence_kernels import ops

from ..devices import backends
from ..shapes import DTYPES, LENGTHS, POLES, batches, check, drawn, laid_out, layouts, random

C128 = torch.complex128


def exponents(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Decaying ones."""
    x = 0.3 * random(shape, dtype, 1)
    return torch.complex(-x.real.abs(), x.imag) if dtype.is_complex else -x.abs()


@drawn(
    batch=batches(2),
    n=POLES,
    length=LENGTHS,
    dtypes=st.tuples(DTYPES, DTYPES),
    layout=layouts(2),
    conjugate=st.booleans(),
    power=st.integers(0, 2),
)
def test_vandermonde(
    batch: Any, n: int, length: int, dtypes: Any, layout: Any, conjugate: bool, power: int
) -> None:
    v, x = random((*batch[0], n), dtypes[0], 0), exponents((*batch[1], n), dtypes[1])
    position = torch.arange(length, dtype=torch.float64)
    terms = v.to(C128).unsqueeze(-1) * torch.exp(x.to(C128).unsqueeze(-1) * position) * position.pow(power)
    want = 2 * terms.real.sum(-2) if conjugate else terms.sum(-2)
    common = torch.promote_types(*dtypes)
    for backend in backends("vandermonde"):
        given = [laid_out(t, k).requires_grad_() for t, k in zip((v, x), layout, strict=True)]
        got = ops.vandermonde(*given, length, conjugate=conjugate, power=power, backend=backend)
        assert got.dtype == (common.to_real() if conjugate and common.is_complex else common)
        check(got.detach(), want, float(terms.norm()))
        for gradient, t in zip(torch.autograd.grad(got.abs().sum(), given), given, strict=True):
            assert (gradient.shape, gradient.dtype) == (t.shape, t.dtype)


@drawn(
    batch=batches(2),
    n=POLES,
    length=LENGTHS,
    dtypes=st.tuples(DTYPES, DTYPES),
    layout=layouts(2),
    power=st.integers(0, 2),
)
def test_vandermonde_transpose(batch: Any, n: int, length: int, dtypes: Any, layout: Any, power: int) -> None:
    g, x = random((*batch[0], length), dtypes[0], 0), exponents((*batch[1], n), dtypes[1])
    position = torch.arange(length, dtype=torch.float64)
    waves = torch.exp(x.to(C128).unsqueeze(-1) * position) * position.pow(power)
    terms = g.to(C128).unsqueeze(-2) * waves
    for backend in backends("vandermonde_transpose"):
        given = [laid_out(t, k).requires_grad_() for t, k in zip((g, x), layout, strict=True)]
        got = ops.vandermonde_transpose(*given, power=power, backend=backend)
        assert got.dtype == torch.promote_types(*dtypes)
        check(got.detach(), terms.sum(-1), float(terms.norm()))
        for gradient, t in zip(torch.autograd.grad(got.abs().sum(), given), given, strict=True):
            assert (gradient.shape, gradient.dtype) == (t.shape, t.dtype)
