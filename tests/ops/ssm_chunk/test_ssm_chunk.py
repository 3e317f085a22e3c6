"""Chunk matrices of every backend against dense matrices of conjugate pairs, multiplied out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, on_every_instruction_set
from ..sample import Sample, complexes
from .exact import C128, assert_matrices, system

every_backend = pytest.mark.parametrize("backend", backends("ssm_chunk"))


def _chunk_matrices(rank: int, tail: bool, channels: int = 2) -> Sample:
    """Of few states: the results are many, and each costs the element-by-element gradcheck two backward passes."""

    none = torch.empty(0, 3, 2, dtype=C128)

    def function(a: Tensor, b: Tensor, c: Tensor, p: Tensor = none, q: Tensor = none) -> tuple[Tensor, ...]:
        *rest, powers = ops.ssm_chunk(a, p, q, b, c, 4, tail=tail)
        return (*rest, powers.to(rest[0].dtype if powers.is_floating_point() else c.dtype))

    low_rank = (0.5 * complexes(rank, 3, 2, seed=1), 0.5 * complexes(rank, 3, 2, seed=2)) if rank else ()
    tensors = (0.5 * complexes(3, 2), complexes(3, 2, seed=3), complexes(channels, 3, 2, seed=4), *low_rank)
    return Sample("ssm_chunk", function, tensors)


SAMPLES = {
    "ssm_chunk": _chunk_matrices(rank=1, tail=False),
    "ssm_chunk-diagonal": _chunk_matrices(rank=0, tail=True, channels=1),
    "ssm_chunk-rank-2-tail": _chunk_matrices(rank=2, tail=True),
}


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_against_dense_powers(backend: str, chunk: int, rank: int, tail: bool) -> None:
    inputs = system(rank)
    taps, e_out, e_in, a_powers = ops.ssm_chunk(*inputs, chunk, tail=tail, backend=backend)
    assert_matrices((taps, e_out.mT, e_in, a_powers), inputs, chunk, tail, 1e-12)


@pytest.mark.parametrize("backend", [b for b in backends("ssm_chunk") if b != "torch"])
@pytest.mark.parametrize(
    ("pairs", "chunk", "rank"), [(3, 32, 1), (32, 16, 1), (7, 4, 3), (1, 1, 1), (5, 8, 0)]
)
@pytest.mark.parametrize("tail", [False, True])
def test_gradients_agree_with_the_reference(
    backend: str, pairs: int, chunk: int, rank: int, tail: bool
) -> None:
    inputs = [t.requires_grad_() for t in system(rank, heads=5, pairs=pairs)]
    results = []
    for name in (backend, "torch"):
        outputs = ops.ssm_chunk(*inputs, chunk, tail=tail, backend=name)
        weights = [
            torch.cos(torch.arange(t.numel(), dtype=torch.float64)).view(t.shape).to(t.dtype) for t in outputs
        ]
        results.append((*outputs, *torch.autograd.grad(outputs, inputs, weights)))
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert float((got - want).norm().detach()) <= 1e-11 * float(want.norm().detach())


@pytest.mark.skipif("cpu" not in backends("ssm_chunk"), reason="needs the native library")
def test_every_instruction_set_and_number_of_threads() -> None:
    a, p, q, b, c = system(1, heads=7, pairs=13)
    inputs = [t.requires_grad_() for t in (a, p, q, b, c.to(torch.complex64))]

    def run(backend: str) -> tuple[Tensor, ...]:
        outputs = ops.ssm_chunk(*inputs, 8, backend=backend)
        return (*outputs, *torch.autograd.grad(outputs, inputs, [o.detach() for o in outputs]))

    want = run("torch")
    for found in on_every_instruction_set(lambda: run("cpu")):
        for one, expected in zip(found, want, strict=True):
            assert one.dtype == expected.dtype
            assert float(((one - expected).norm() / expected.norm()).detach()) < 1e-6


@every_backend
def test_only_c_is_rounded(backend: str) -> None:
    """complex64 parameters are taken as they are, and results follow the dtype of c."""
    inputs = [t.to(torch.complex64) for t in system(1)]
    single = ops.ssm_chunk(*inputs, 4, backend=backend)
    double = ops.ssm_chunk(*(t.to(C128) for t in inputs), 4, backend=backend)
    assert [t.dtype for t in single] == 3 * [torch.float32] + [torch.float64]
    for got, want in zip(single, double, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-7, atol=0)


def test_bad_arguments() -> None:
    a, p, q, b, c = system(2)
    with pytest.raises(ValueError, match="chunk must be a power of two, got 12"):
        ops.ssm_chunk(a, p, q, b, c, 12)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        ops.ssm_chunk(a, p, q, b, c, 0)
    with pytest.raises(ValueError, match=r"q must have shape \(R=2, H=3, N=5\), got \(1, 3, 5\)"):
        ops.ssm_chunk(a, p, q[:1], b, c, 4)
