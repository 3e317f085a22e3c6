"""The transpose of a plain Cauchy product: V weights of (H, L) nodes to (V, H, N) poles."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    t = 2 * torch.tan(torch.linspace(0, 0.49 * math.pi, shape["L"], dtype=torch.float64, device=device))
    g = torch.randn(shape["V"], shape["H"], shape["L"], dtype=torch.complex64, device=device)
    z = torch.complex(torch.zeros_like(t), t).to(torch.complex64)
    return {"g": g, "z": z, "w": poles(shape["H"], shape["N"], device)}


def ours(x: Inputs) -> Tensor:
    return ops.cauchy_transpose(x["g"], x["z"], x["w"])


def naive(x: Inputs) -> Tensor:
    return (x["g"][..., None, :] / (x["z"] - x["w"][..., None])).sum(-1)


def cost(shape: Shape, mode: str) -> Cost:
    """A pair: 2 subtractions, |z - w|^2 (3), the reciprocal, 2 products; a complex multiply-add for each weight."""
    pairs = shape["H"] * shape["N"] * shape["L"]
    moved = shape["V"] * shape["H"] * (shape["L"] + shape["N"]) + shape["L"] + shape["H"] * shape["N"]
    return Cost(8 * moved, pairs * (7 + 8 * shape["V"]), reciprocals=pairs)


def fits(shape: Shape) -> str | None:
    size = 8 * shape["V"] * shape["H"] * shape["N"] * shape["L"]
    return "would hold arrays of over 1 GiB" if size > 2**30 else None


BENCH = Bench(
    entry="ops.cauchy_transpose",
    shapes={
        "quick": grid(V=4, H=16, N=32, L=(513, 2049)),
        "full": grid(V=4, H=256, N=32, L=(513, 2049)),
        "cuda": grid(V=4, H=1024, N=32, L=(513, 2049)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        Counted({"V": 2, "H": 1, "N": 3, "L": 5}, FORWARD, Cost(8 * (10 + 5 + 3 + 6), 15 * (7 + 16), 15)),
    ),
    gate=2.5,
    peers=(Peer("torch naive", naive, serves=fits),),
)
