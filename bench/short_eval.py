"""A short sequence through an S4D layer without gradients, against chunks whose matrices every call makes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bench.harness.declare import FORWARD, Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.ssm_direct import cost as direct_cost
from sequence_kernels import S4D

AS_IT_WAS = "chunks, nothing kept"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    layer = S4D(shape["H"], d_state=2 * shape["N"]).to(device).eval().requires_grad_(False)
    return {"layer": layer, "x": torch.randn(shape["B"], shape["H"], shape["L"], device=device)}


def chunked(x: Inputs) -> Inputs:
    layer = copy.deepcopy(x["layer"])
    layer.conv = "chunked"
    return {**x, "layer": layer}


def ours(x: Inputs) -> Tensor:
    with torch.no_grad():
        return x["layer"](x["x"])[0]


def as_it_was(x: Inputs) -> Tensor:
    with torch.enable_grad():  # where gradients might be wanted nothing is kept, and here nothing wants one
        return x["layer"](x["x"])[0]


def cost(shape: Shape, mode: str) -> Cost:
    """The convolution, and the (H, 2 H) map."""
    b, h, length = (shape[key] for key in "BHL")
    return direct_cost({**shape, "R": 0}, mode) + Cost(8 * h * h, 4 * b * length * h * h)


BENCH = Bench(
    entry="layers.S4D",
    shapes={
        "quick": grid(B=1, H=64, N=32, L=64),
        "full": grid(B=1, H=64, N=32, L=64),
        "cuda": grid(B=1, H=64, N=32, L=64),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    wrt=(),
    peers=(Peer(AS_IT_WAS, as_it_was, chunked),),
    targets=(Target(23, "S4D layer of 64, eval, B=1 L=64", "B1-H64-N32-L64", AS_IT_WAS, 2, FORWARD),),
)
