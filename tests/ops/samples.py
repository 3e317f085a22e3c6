"""Sample calls of every op, for the tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_kernels import ops

F64, C128 = torch.float64, torch.complex128


class Sample(NamedTuple):
    """A call ``function(*tensors)`` of one op: all tensors differentiable, float64 or complex128."""

    op: str
    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]


class Call(NamedTuple):
    """One call of a registered op."""

    op: Any
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]


class Recorded(TorchDispatchMode):
    """Within it, all calls of registered ops are noted in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "sequence_kernels":
            results = tuple(out) if isinstance(out, (tuple, list)) else (out,)
            self.calls.append(Call(func, tuple(args), results))
        return out


def every_call() -> list[Call]:
    """Calls of every registered op, as the samples and their gradients make them; those in place from the others."""
    with Recorded() as recorded:
        for sample in SAMPLES.values():
            inputs = [t.clone().requires_grad_() for t in sample.tensors]
            result = sample.function(*inputs)
            results = result if isinstance(result, tuple) else (result,)
            torch.autograd.grad([r.abs().sum() for r in results], inputs, allow_unused=True)
        for op, args, _ in list(recorded.calls):
            if f"{op._opname}_" in ops.operations():
                in_place = getattr(torch.ops.sequence_kernels, f"{op._opname}_").default
                given = dict(zip((a.name for a in op._schema.arguments), args, strict=True))
                arguments = [given.get(a.name) for a in in_place._schema.arguments]
                with torch.no_grad():
                    in_place(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
    return [
        Call(op, *([t.detach() if isinstance(t, Tensor) else t for t in ts] for ts in rest))
        for op, *rest in recorded.calls
    ]


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def complexes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=C128, generator=torch.Generator().manual_seed(seed))


def exponents(*shape: int) -> Tensor:
    return torch.complex(-0.1 - 0.1 * real(*shape, seed=5).abs(), real(*shape, seed=6))


def poles(*shape: int) -> Tensor:
    return torch.complex(-0.5 - real(*shape, seed=7).abs(), real(*shape, seed=8))


def nodes(*shape: int) -> Tensor:
    return torch.complex(torch.zeros(*shape, dtype=F64), 3 * real(*shape, seed=9))


def _conv(dense: bool, lengths: Tensor | None = None) -> Sample:
    heads, channels, size, chunk, count = 2, 2, 4, 4, 3
    powers = 0.3 * real(heads, count, size, size) if dense else 0.6 * complexes(heads, count, size // 2)
    tensors = (
        real(3, heads, 11),
        real(channels, heads, chunk, seed=1),
        real(channels, heads, size, chunk, seed=2),
        real(heads, chunk, size, seed=3),
        powers,
        real(channels, heads, seed=4),
        real(3, heads, size, seed=5),
    )
    return Sample("ssm_conv", lambda *t: ops.ssm_conv(*t, lengths=lengths), tensors)


def _generating(rank: int) -> Sample:
    tensors = (
        complexes(2, 3, 4),
        0.5 * complexes(rank, 3, 4, seed=1),
        0.5 * complexes(rank, 3, 4, seed=1).conj_physical(),
        complexes(3, 4, seed=3),
        poles(3, 4),
        0.5 + real(3, seed=4).abs(),
        2 * real(5, seed=5),
    )
    return Sample("dplr_generating", ops.dplr_generating, tensors)


def _discretize(rank: int) -> Sample:
    tensors = (poles(3, 4), 0.5 * complexes(rank, 3, 4, seed=1), complexes(3, 4, seed=3), 0.1 + real(3).abs())
    return Sample("dplr_discretize", ops.dplr_discretize, tensors)


def _chunk_matrices(rank: int, tail: bool) -> Sample:
    """Of few states: the results are many, and each costs the element-by-element gradcheck two backward passes."""
    none = torch.empty(0, 3, 2, dtype=C128)

    def function(a: Tensor, b: Tensor, c: Tensor, p: Tensor = none, q: Tensor = none) -> tuple[Tensor, ...]:
        *rest, powers = ops.ssm_chunk(a, p, q, b, c, 4, tail=tail)
        return (*rest, powers.to(rest[0].dtype if powers.is_floating_point() else c.dtype))

    low_rank = (0.5 * complexes(rank, 3, 2, seed=1), 0.5 * complexes(rank, 3, 2, seed=2)) if rank else ()
    tensors = (0.5 * complexes(3, 2), complexes(3, 2, seed=3), complexes(2, 3, 2, seed=4), *low_rank)
    return Sample("ssm_chunk", function, tensors)


SAMPLES: dict[str, Sample] = {
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
    "ssm_conv-diagonal": _conv(dense=False),
    "ssm_conv-dense-lengths": _conv(dense=True, lengths=torch.tensor([0, 6, 11])),
    "fft_conv": Sample("fft_conv", ops.fft_conv, (real(2, 3, 7), real(4, 3, 5), real(4, 3))),
    "fft_conv-bidirectional": Sample(
        "fft_conv",
        lambda u, k, d: ops.fft_conv(u, k, d, bidirectional=True),
        (real(2, 3, 7), real(4, 3, 9), real(2, 3)),
    ),
    "ssm_step": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
            real(2, 3, seed=4),
        ),
    ),
    "ssm_chunk": _chunk_matrices(rank=1, tail=False),
    "ssm_chunk-diagonal": _chunk_matrices(rank=0, tail=True),
    "ssm_chunk-rank-2-tail": _chunk_matrices(rank=2, tail=True),
    "dplr_discretize": _discretize(rank=1),
    "dplr_discretize-rank-2": _discretize(rank=2),
    "dplr_generating": _generating(rank=1),
    "dplr_generating-rank-2": _generating(rank=2),
    "ssm_step-low-rank": Sample(
        "ssm_step",
        ops.ssm_step,
        (
            complexes(2, 3, 4),
            real(2, 3),
            complexes(3, 4, seed=1),
            complexes(3, 4, seed=4),
            complexes(1, 3, 4, seed=5),
            real(1, 3),
            complexes(2, 3, 4, seed=2),
            complexes(2, 3, 4, seed=3),
        ),
    ),
}
