"""The norm inside a Mamba-2 layer, with its gate, of inputs as wide as a layer of 768 has them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    rows, channels = shape["R"], shape["C"]
    return {
        "x": torch.randn(rows, channels, device=device),
        "weight": torch.randn(channels, device=device),
        "z": torch.randn(rows, channels, device=device),
    }


def ours(x: Inputs) -> Tensor:
    return ops.gated_rms_norm(x["x"], x["weight"], x["z"])


def apart(x: Inputs) -> Tensor:
    """By torch's own gate and norm."""
    return F.rms_norm(x["x"] * F.silu(x["z"]), x["weight"].shape, x["weight"], 1e-5)


def cost(shape: Shape, mode: str) -> Cost:
    """silu (an exponential, a reciprocal, 2 more), its product, a square and a sum, and two products; backward as much
    again, and 18 for the gradients."""
    elements, channels = shape["R"] * shape["C"], shape["C"]
    forward = Cost(12 * elements + 4 * channels, 7 * elements, elements, elements)
    back = Cost(20 * elements + 8 * channels, 25 * elements, elements, elements)
    return forward + back if mode == BOTH else forward


BENCH = Bench(
    entry="ops.gated_rms_norm",
    shapes={
        "quick": grid(R=512, C=512),
        "full": grid(R=(512, 2048), C=1536),
        "cuda": grid(R=16384, C=1536),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 3 x 5 elements of x, z and y, 5 weights; 7 operations, 1 / and e each
        Counted({"R": 3, "C": 5}, FORWARD, Cost(4 * (3 * 15 + 5), 7 * 15, 15, 15)),
    ),
    wrt=("x", "weight", "z"),
    peers=(Peer("torch silu and rms_norm", apart),),
)
