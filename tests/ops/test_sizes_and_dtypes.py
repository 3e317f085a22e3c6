"""Every op with a size of 0, and with dtypes that differ: a right result with its gradients, or a refusal before."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sequence_kernels import use_backend

from .sample import Sample
from .test_contract import every, outputs, sample  # noqa: F401 (`sample` is a fixture)


def results_and_gradients(
    call: Sample, tensors: list[Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    results = outputs(call.function(*inputs))
    grown = [r for r in results if r.requires_grad]
    return results, torch.autograd.grad(grown, inputs, [torch.ones_like(r) for r in grown])


def refusal(call: Sample, tensors: list[Tensor]) -> str:
    """What the op says against these arguments; empty if it serves them."""
    try:
        call.function(*tensors)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def finite(tensors: tuple[Tensor, ...]) -> bool:
    return all(bool(torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all()) for t in tensors)


def single(t: Tensor) -> Tensor:
    return t.to(torch.complex64 if t.is_complex() else torch.float32)


@every
def test_dtypes_that_differ(sample: Sample, backend: str) -> None:  # noqa: F811
    each = set(range(len(sample.tensors)))
    with use_backend(backend):
        _, expected = results_and_gradients(sample, list(sample.tensors))
        for narrow in itertools.chain(({i} for i in each), (each - {i} for i in each)):
            mixed = [single(t) if i in narrow else t for i, t in enumerate(sample.tensors)]
            if said := refusal(sample, mixed):
                assert "must" in said, f"{narrow}: {said}"
                continue
            results, gradients = results_and_gradients(sample, mixed)
            assert finite(results)
            for got, want, given in zip(gradients, expected, mixed, strict=True):
                assert got.dtype == given.dtype
                torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-3, atol=1e-3)


@every
def test_sizes_of_zero(sample: Sample, backend: str) -> None:  # noqa: F811
    served = 0
    with use_backend(backend):
        for size in sorted({n for t in sample.tensors for n in t.shape}):
            tensors = [t[tuple(slice(0 if n == size else n) for n in t.shape)] for t in sample.tensors]
            if said := refusal(sample, tensors):
                assert "must" in said or "match" in said, f"{size}: {said}"
                continue
            served += 1
            results, gradients = results_and_gradients(sample, tensors)
            assert finite((*results, *gradients))
            assert [g.shape for g in gradients] == [t.shape for t in tensors]
    assert served
