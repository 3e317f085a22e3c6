"""Every CUDA kernel, launched on a GPU in a few small calls: what compute-sanitizer watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import native, ops

from .devices import run

pytestmark = [pytest.mark.gpu, pytest.mark.checks("GPU", of="*/cuda")]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def poles(*shape: int) -> Tensor:
    return torch.complex(-0.5 - torch.rand(*shape).double(), 3 * torch.randn(*shape).double())


def step(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Both results of a step as one tensor."""
    return lambda *arguments, **options: torch.cat([t.flatten() for t in op(*arguments, **options)])


def step_arguments(rows: int, rank: int | None) -> list[Any]:
    low_rank = [] if rank is None else [normal(rank, 3, 33), normal(rank, 3, 33)]
    a, b = poles(3, 33), normal(3, 33)
    return [normal(rows, 3, 33), normal(rows, 3).real, a, *low_rank, b, normal(2, 3, 33), normal(2, 3).real]


# One set of weights and three: the kernels differ. Longer than a segment: the sum over segments too.
CALLS: dict[str, tuple[Callable[..., Tensor], Callable[[], list[Any]], dict[str, Any]]] = {
    "pairs": (ops.vandermonde, lambda: [normal(3, 2, 17), poles(2, 17) / 70, 70], {}),
    "plain": (ops.vandermonde, lambda: [normal(2, 17), poles(2, 17) / 5000, 5000], {"conjugate": False}),
    "real": (ops.vandermonde_transpose, lambda: [normal(2, 70).real, poles(2, 17) / 70], {"power": 1}),
    "complex": (ops.vandermonde_transpose, lambda: [normal(3, 2, 16385), poles(2, 17) / 16385], {}),
    "one": (ops.cauchy, lambda: [normal(2, 17), 1j * normal(130).real, poles(2, 17)], {}),
    "four": (
        ops.cauchy,
        lambda: [normal(3, 2, 40), 1j * normal(2, 130).real, poles(2, 40)],
        {"conjugate": False, "order": 2},
    ),
    "transpose_one": (
        ops.cauchy_transpose,
        lambda: [normal(2, 4097), 1j * normal(4097).real, poles(2, 3)],
        {},
    ),
    "transpose_four": (
        ops.cauchy_transpose,
        lambda: [normal(3, 2, 130), 1j * normal(2, 130).real, poles(2, 40)],
        {"order": 2},
    ),
    "step_one": (step(ops.ssm_step), lambda: step_arguments(1, None), {}),
    "step_many": (step(ops.dplr_step), lambda: step_arguments(9, 2), {}),
}


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("call", CALLS)
def test_kernels_that_compute_sanitizer_watches(call: str, wide: bool, tolerance: float) -> None:
    if (reason := native.why_not("cuda")) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    op, arguments, options = CALLS[call]
    made = [
        a if wide or not isinstance(a, Tensor) else a.to(torch.complex64 if a.is_complex() else torch.float32)
        for a in arguments()
    ]
    exact = [
        a.to(torch.complex128 if a.is_complex() else torch.float64) if isinstance(a, Tensor) else a
        for a in made
    ]
    expected = op(*exact, backend="torch", **options)
    got = run(op, *made, backend="cuda", **options)
    assert float((got - expected).norm()) < tolerance * float(expected.norm())
