"""GELU and GLU of activations as wide as a layer of 256 has them, with their gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.declare import (
    BOTH,
    FORWARD,
    KEEPS,
    Bench,
    Cost,
    Counted,
    Inputs,
    Peer,
    Shape,
    Target,
    grid,
)
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape["R"], shape["C"], device=device), "kind": shape["kind"]}


def ours(x: Inputs) -> Tensor:
    return ops.activation(x["x"], x["kind"])


def torchs(x: Inputs) -> Tensor:
    return F.glu(x["x"], -1) if x["kind"] == "glu" else F.gelu(x["x"])


def cost(shape: Shape, mode: str) -> Cost:
    """An exponential and a reciprocal each, 26 more for GELU and 3 for GLU; backward as much again, and 4."""
    elements, gate = shape["R"] * shape["C"], shape["kind"] == "glu"
    results = elements // 2 if gate else elements
    other = 3 if gate else 26
    forward = Cost(4 * (elements + results), other * results, results, results)
    back = Cost(4 * (2 * elements + results), (other + 4) * results, results, results)
    return forward + back if mode == BOTH else forward


def promise(kind: str) -> Target:
    return Target(
        23,
        f"{kind} of 16384 x 512, forward+backward",
        f"R16384-C512-{kind}",
        "torch",
        1.2,
        BOTH,
        allocator=KEEPS,
    )


BENCH = Bench(
    entry="ops.activation",
    shapes={
        "quick": grid(R=512, C=512, kind=("gelu", "glu")),
        "full": grid(R=16384, C=512, kind=("gelu", "glu")),
        "cuda": grid(R=16384, C=512, kind=("gelu", "glu")),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 15 elements read and written; 26 operations, 1 / and e each
        Counted({"R": 3, "C": 5, "kind": "gelu"}, FORWARD, Cost(4 * 30, 26 * 15, 15, 15)),
        Counted({"R": 3, "C": 4, "kind": "glu"}, FORWARD, Cost(4 * 18, 3 * 6, 6, 6)),
    ),
    wrt=("x",),
    peers=(Peer("torch", torchs),),
    targets=(promise("gelu"), promise("glu")),
)
