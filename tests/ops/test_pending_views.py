"""Tensors whose conjugation or sign is pending, which have other numbers in memory than they stand for."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from sequence_kernels import use_backend

from .devices import backends
from .sample import Sample
from .samples import SAMPLES, Recorded

CASES = [(name, backend) for name, sample in SAMPLES.items() for backend in backends(sample.op)]


def pending(t: Tensor) -> Tensor:
    view = t.conj().resolve_conj().conj() if t.is_complex() else torch._neg_view(-t)
    assert view.is_conj() or view.is_neg()
    return view


def called(sample: Sample, tensors: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Results and gradients."""
    inputs = [t.requires_grad_() for t in tensors]
    out = sample.function(*inputs)
    results = out if isinstance(out, tuple) else (out,)
    return (*results, *torch.autograd.grad(results, inputs, weights))


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_they_count_as_what_they_stand_for(name: str, backend: str) -> None:
    """Also below a TorchDispatchMode: torch, not the implementations, resolves them on the way to a native op."""
    sample = SAMPLES[name]
    with use_backend(backend), torch.no_grad():
        out = sample.function(*sample.tensors)
    weights = [torch.randn_like(y) for y in (out if isinstance(out, tuple) else (out,))]
    for mode in (contextlib.nullcontext(), Recorded()):
        with use_backend(backend):
            want = called(sample, [t.clone() for t in sample.tensors], weights)
            with mode:
                got = called(sample, [pending(t) for t in sample.tensors], [pending(t) for t in weights])
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
