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
    return [normal(rows, 3, 33), normal(rows, 3).real, a, b, normal(2, 3, 33), normal(2, 3).real, *low_rank]


def gradients(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradients of all arguments but the last two, with every second output counting double, as one tensor."""

    def run(*arguments: Any, **options: Any) -> Tensor:
        leaves = [a.detach().requires_grad_(i + 2 < len(arguments)) for i, a in enumerate(arguments)]
        out = op(*leaves, **options)
        out.backward(torch.ones_like(out) + torch.arange(out.shape[-1], device=out.device) % 2)
        return torch.cat([a.grad.flatten() for a in leaves[:-2]])

    return run


def generating_arguments(channels: int, rank: int, length: int) -> list[Any]:
    c, p, q = (0.3 * normal(k, 3, 33) for k in (channels, rank, rank))
    nodes = torch.cat((normal(length - 1).real, torch.tensor([torch.inf])))
    return [c, p, q, normal(3, 33), poles(3, 33), torch.rand(3).double() + 0.5, nodes]


def convolution(*arguments: Tensor, backend: str, **options: Any) -> Tensor:
    """Both results and all gradients of the chunked convolution, as one real tensor."""
    leaves = [a.detach().requires_grad_() for a in arguments]
    y, final = ops.ssm_conv(*leaves, backend=backend, **options)
    (y.square().sum() + final.square().sum()).backward()
    found = [y, final, *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).flatten() for t in found])


def convolution_arguments(
    batch: int, channels: int, length: int, chunk: int, size: int, dense: bool
) -> list[Any]:
    power = 0.5 * (normal(2, size, size).real / size if dense else normal(2, size // 2))
    powers = [power]
    while len(powers) < chunk.bit_length():
        powers.append(powers[-1] @ powers[-1] if dense else powers[-1].square())
    matrices = (normal(channels, 2, chunk), normal(channels, 2, size, chunk), normal(2, chunk, size))
    others = (normal(channels, 2), normal(batch, 2, size))
    u = normal(batch, 2, length).real
    return [u, *(m.real for m in matrices), torch.stack(powers, 1), *(m.real for m in others)]


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
    "generating": (ops.dplr_generating, lambda: generating_arguments(1, 1, 130), {}),
    "generating_two": (ops.dplr_generating, lambda: generating_arguments(2, 1, 130), {}),
    "generating_rank_2": (ops.dplr_generating, lambda: generating_arguments(1, 2, 130), {}),
    "generating_any": (ops.dplr_generating, lambda: generating_arguments(3, 2, 130), {}),
    "generating_gradients": (gradients(ops.dplr_generating), lambda: generating_arguments(1, 1, 513), {}),
    "generating_gradients_two": (gradients(ops.dplr_generating), lambda: generating_arguments(2, 1, 130), {}),
    "generating_gradients_rank_2": (
        gradients(ops.dplr_generating),
        lambda: generating_arguments(1, 2, 9),
        {},
    ),
    "generating_gradients_any": (gradients(ops.dplr_generating), lambda: generating_arguments(3, 2, 9), {}),
    "transpose_four": (
        ops.cauchy_transpose,
        lambda: [normal(3, 2, 130), 1j * normal(2, 130).real, poles(2, 40)],
        {"order": 2},
    ),
    # As one segment and as several, whose chunks fill a warp's tile or do not; with more gradients than a block holds.
    "convolution": (convolution, lambda: convolution_arguments(17, 1, 70, 16, 20, False), {}),
    "convolution_segments": (convolution, lambda: convolution_arguments(2, 2, 300, 4, 6, True), {}),
    "convolution_parts": (convolution, lambda: convolution_arguments(2, 1, 1000, 32, 64, True), {}),
    "step_one": (step(ops.ssm_step), lambda: step_arguments(1, None), {}),
    "step_many": (step(ops.ssm_step), lambda: step_arguments(9, 2), {}),
}


@pytest.mark.parametrize(("wide", "tolerance"), [(False, 1e-5), (True, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("call", CALLS)
def test_kernels_that_compute_sanitizer_watches(call: str, wide: bool, tolerance: float) -> None:
    if (reason := native.unavailable("cuda")) is not None:
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
