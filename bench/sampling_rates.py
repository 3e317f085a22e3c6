"""A sampling step for each row (E = 0), or for each element (E = 1), of a layer, against one for all.

A is 1 for S4 (a dense A), 0 for S4D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._systems import chunked_cost
from bench.harness.declare import BOTH, Bench, Cost, Inputs, Peer, Shape, Target, grid
from sequence_kernels import S4, S4D

ONE = "one rate for all"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    batch, heads, length = (shape[key] for key in "BHL")
    make = S4 if shape["A"] else S4D
    return {
        "layer": make(heads, 64, transposed=False).to(device).eval(),
        "x": torch.randn(batch, length, heads, device=device),
        "rate": 0.5 + torch.rand(batch, *((length,) if shape["E"] else ()), device=device),
    }


def ours(x: Inputs) -> Tensor:
    return x["layer"](x["x"], rate=x["rate"])[0]


def even(x: Inputs) -> Tensor:
    """Another answer."""
    return x["layer"](x["x"])[0]


def cost(shape: Shape, mode: str) -> Cost:
    """That of one rate: the convolution and the (H, 2 H) linear map (twice as much again backward)."""
    batch, heads, length = (shape[key] for key in "BHL")
    found = chunked_cost(mode, batch, heads, 32, length, dense=bool(shape["A"]))
    linear = Cost(bytes=8 * heads * heads, flops=4 * batch * length * heads * heads)
    return found + linear + (linear + linear if mode == BOTH else Cost(0, 0))


def target(kind: int, name: str) -> Target:
    work = f"{name} with a rate for each of 8 rows, L=1024, forward+backward, of the time with one for all"
    return Target(18, work, f"A{kind}-B8-E0-H64-L1024", ONE, 1 / 1.3, BOTH)


BENCH = Bench(
    entry="layers.S4D",
    shapes={
        "quick": grid(A=(0, 1), B=4, E=0, H=32, L=512),
        "full": grid(A=(0, 1), B=8, E=0, H=64, L=(256, 1024)) + grid(A=0, B=8, E=1, H=64, L=1024),
        "cuda": grid(A=(0, 1), B=16, E=0, H=512, L=4096),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    wrt=("x", "layer"),
    peers=(Peer(ONE, even, tolerance=math.inf),),
    targets=(target(0, "S4D"), target(1, "S4")),
)
