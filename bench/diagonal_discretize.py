"""The discretisation of diagonal models: (1, N) eigenvalues and (H) steps to the parameters of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops
from sequence_kernels.ssm import discretize


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """One set of eigenvalues that all heads share, with steps from 1e-3 to 1e-1."""
    b = torch.randn(1, shape["N"], dtype=torch.complex64, device=device)
    dt = torch.logspace(-3, -1, shape["H"], dtype=torch.float64, device=device)
    return {"a": poles(1, shape["N"], device) * 1000, "b": b, "dt": dt}


def ours(x: Inputs) -> tuple[Tensor, ...]:
    return ops.diagonal_discretize(x["a"], x["b"], x["dt"])


def exponents(x: Inputs) -> tuple[Tensor, ...]:
    """The same from the exponents, as kernels take them: A - 1 = e^x - 1."""
    log_a, b = discretize(x["a"].expand(len(x["dt"]), -1), x["b"], x["dt"], "zoh")
    return torch.expm1(log_a).to(torch.complex64), b.to(torch.complex64)


def cost(shape: Shape, mode: str) -> Cost:
    """A number: a dt, e^x, 1 / x, two products. Bytes: inputs and outputs once."""
    h, n = shape["H"], shape["N"]
    return Cost(8 * (2 * n + 2 * h * n) + 8 * h, h * n * 24, reciprocals=h * n, transcendentals=3 * h * n)


BENCH = Bench(
    entry="ops.diagonal_discretize",
    shapes={
        "quick": grid(H=(16, 256), N=32),
        "full": grid(H=(256, 1024), N=32),
        "cuda": grid(H=1024, N=32),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 numbers of 1 head: a and b read, a - 1 and b' written, dt of 8 bytes
        Counted({"H": 1, "N": 2}, FORWARD, Cost(8 * (2 * 2 + 2 * 2) + 8, 2 * 24, 2, 6)),
    ),
    peers=(Peer("torch exponents", exponents, quick=False),),
)
