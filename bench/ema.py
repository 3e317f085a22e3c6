"""Exponential moving sums: (B, H, L) and (H) to (B, H, L)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    u = torch.randn(shape["B"], shape["H"], shape["L"], device=device)
    return {"u": u, "a": torch.rand(shape["H"], device=device)}


def ours(x: Inputs) -> Tensor:
    return ops.ema(x["u"], x["a"])


def cost(shape: Shape, mode: str) -> Cost:
    """A multiply-add an element; backward the same again, the adjoint, and the sum for a."""
    elements = shape["B"] * shape["H"] * shape["L"]
    forward = Cost(8 * elements + 4 * shape["H"], 2 * elements)
    return forward if mode == FORWARD else forward + Cost(12 * elements + 8 * shape["H"], 6 * elements)


BENCH = Bench(
    entry="ops.ema",
    shapes={"quick": grid(B=8, H=64, L=1024)},
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 1 x 2 x 3 elements and 2 decays read, 6 elements written
        Counted({"B": 1, "H": 2, "L": 3}, FORWARD, Cost(4 * (6 + 2) + 4 * 6, 2 * 6)),
        # and g, u and the decays read, du and da written
        Counted({"B": 1, "H": 2, "L": 3}, BOTH, Cost(56 + 4 * (6 + 6 + 2) + 4 * (6 + 2), 12 + 36)),
    ),
    wrt=("u", "a"),
)
