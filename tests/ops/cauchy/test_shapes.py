"""Cauchy products of drawn shapes, dtypes and layouts against the sums as written."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends
from ..shapes import DTYPES, LENGTHS, POLES, batches, check, drawn, laid_out, layouts, random

C128 = torch.complex128
OPTIONS = {
    "batch": batches(3),
    "n": POLES,
    "length": LENGTHS,
    "dtypes": st.tuples(DTYPES, DTYPES, DTYPES),
    "layout": layouts(3),
    "conjugate": st.booleans(),
    "order": st.integers(1, 3),
    "on_axis": st.booleans(),
}


def poles(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    w = random(shape, dtype, 1)
    return torch.complex(-0.5 - w.real.abs(), w.imag) if dtype.is_complex else -0.5 - w.abs()


def nodes(shape: tuple[int, ...], dtype: torch.dtype, on_axis: bool) -> Tensor:
    z = random(shape, dtype, 2)
    if dtype.is_complex:
        return torch.complex(torch.zeros_like(z.real) if on_axis else z.real.abs(), 3 * z.imag)
    return torch.zeros_like(z) if on_axis else z.abs()


def compare(
    op: Any, values: tuple[Tensor, ...], layout: Any, want: Tensor, scale: Tensor, **options: Any
) -> None:
    common = values[0].dtype
    for value in values[1:]:
        common = torch.promote_types(common, value.dtype)
    for backend in backends(op.__name__):
        given = [laid_out(t, k).requires_grad_() for t, k in zip(values, layout, strict=True)]
        got = op(*given, backend=backend, **options)
        assert got.dtype == common
        check(got.detach(), want, float(scale.norm()))
        for gradient, t in zip(torch.autograd.grad(got.abs().sum(), given), given, strict=True):
            assert (gradient.shape, gradient.dtype) == (t.shape, t.dtype)


@drawn(**OPTIONS)
def test_cauchy(
    batch: Any, n: int, length: int, dtypes: Any, layout: Any, conjugate: bool, order: int, on_axis: bool
) -> None:
    v, w = random((*batch[0], n), dtypes[0], 0), poles((*batch[2], n), dtypes[2])
    z = nodes((*batch[1], length), dtypes[1], on_axis)
    a, x, p = v.to(C128).unsqueeze(-2), z.to(C128).unsqueeze(-1), w.to(C128).unsqueeze(-2)
    terms = a / (x - p) ** order
    if conjugate:
        terms = torch.cat((terms, a.conj() / (x - p.conj()) ** order), -1)
    compare(ops.cauchy, (v, z, w), layout, terms.sum(-1), terms, conjugate=conjugate, order=order)


@drawn(**OPTIONS)
def test_cauchy_transpose(
    batch: Any, n: int, length: int, dtypes: Any, layout: Any, conjugate: bool, order: int, on_axis: bool
) -> None:
    g, w = random((*batch[0], length), dtypes[0], 0), poles((*batch[2], n), dtypes[2])
    z = nodes((*batch[1], length), dtypes[1], on_axis)
    a, x, p = g.to(C128).unsqueeze(-2), z.to(C128).unsqueeze(-2), w.to(C128).unsqueeze(-1)
    terms = a / (x - p) ** order
    if conjugate:
        terms = torch.cat((terms, a.conj() / (x.conj() - p) ** order), -1)
    compare(ops.cauchy_transpose, (g, z, w), layout, terms.sum(-1), terms, conjugate=conjugate, order=order)
