"""Moments of sequences against exponentials: (H, L) and exponents (H, N) to (H, N)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import poles, vandermonde_cost
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from bench.harness.unavailable import unless_installed
from bench.peers import keops
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    g = torch.randn(shape["H"], shape["L"], device=device)
    return {"g": g, "x": poles(shape["H"], shape["N"], device)}


def ours(x: Inputs) -> Tensor:
    return ops.vandermonde_transpose(x["g"], x["x"])


def naive(x: Inputs) -> Tensor:
    powers = torch.exp(x["x"][..., None] * torch.arange(x["g"].shape[-1], device=x["g"].device))
    return torch.einsum("hl,hnl->hn", x["g"].to(powers.dtype), powers)


def cost(shape: Shape, mode: str) -> Cost:
    return vandermonde_cost(shape["H"], shape["N"], shape["L"])


def fits(shape: Shape) -> str | None:
    size = 8 * shape["H"] * shape["N"] * shape["L"]
    return "would hold arrays of over 1 GiB" if size > 2**30 else None


BENCH = Bench(
    entry="ops.vandermonde_transpose",
    shapes={
        "quick": grid(H=32, N=32, L=(1024, 4096)),
        "full": grid(H=256, N=32, L=(1024, 4096, 16384, 65536)),
        "cuda": grid(H=1024, N=32, L=(1024, 4096, 16384, 65536)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 heads, 3 poles, 5 positions: split 2 x 4
        Counted(
            {"H": 2, "N": 3, "L": 5}, FORWARD, Cost(4 * 10 + 8 * 6 + 8 * 6, 4 * 30 + 6 * 12, 0, 3 * 6 * 6)
        ),
    ),
    gate=2.5,
    peers=(
        Peer("torch naive", naive, serves=fits),
        Peer(
            "pykeops",
            keops.vandermonde_transpose,
            unavailable=unless_installed("pykeops", "pykeops"),
            quick=False,
        ),
    ),
)
