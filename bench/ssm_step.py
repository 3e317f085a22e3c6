"""One time step of a diagonal SSM: every state is read and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import diagonal
from bench.harness.declare import Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.needs import cpu_only
from bench.peers import compiled
from sequence_kernels import ops

SHAPE, LARGE = "B64-H1024-N32", "B512-H1024-N32"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    b, h, n = shape["B"], shape["H"], shape["N"]
    system = diagonal(h, n, device)
    return {
        "state": torch.randn(b, h, n, dtype=torch.complex64, device=device),
        "u": torch.randn(b, h, device=device),
        "a": system.a,
        "b": system.b,
        "c": system.c,
        "d": torch.randn(1, h, device=device),
    }


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.ssm_step(**x)


def naive(x: Inputs) -> tuple[Tensor, Tensor]:
    state = x["a"] * x["state"] + x["b"] * x["u"].unsqueeze(-1)
    y = 2 * torch.einsum("chn,bhn->bch", x["c"], state).real
    return y + x["d"] * x["u"].unsqueeze(1), state


def cost(shape: Shape, mode: str) -> Cost:
    """A state: a complex product and a complex-real multiply-add (10), and the real part of a product (4)."""
    b, h, n = shape["B"], shape["H"], shape["N"]
    return Cost(16 * b * h * n + 24 * h * n + 8 * b * h + 4 * h, 14 * b * h * n + 3 * b * h)


BENCH = Bench(
    entry="ops.ssm_step",
    shapes={
        "quick": grid(B=(1, 16), H=256, N=32),
        "full": grid(B=(1, 16), H=256, N=32) + grid(B=64, H=1024, N=32),
        "cuda": grid(B=(1, 64, 512), H=1024, N=32),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    gate=1.05,
    peers=(
        Peer("torch naive", naive),
        Peer("torch.compile", compiled.run, compiled.of(naive), needs=cpu_only, quick=False),
    ),
    targets=(
        Target(7, "ssm_step B=64 H=1024 N=32, bytes over copy bandwidth", SHAPE, "copy", 0.6),
        Target(7, "ssm_step B=512 on a GPU, bytes over copy bandwidth", LARGE, "copy", 0.6, device="cuda"),
    ),
)
