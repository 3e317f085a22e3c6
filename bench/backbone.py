"""A backbone of S4D and feed-forward layers over whole sequences, against its matrix products alone."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench._systems import chunked_cost
from bench.harness.declare import BOTH, KEEPS, Bench, Cost, Inputs, Peer, Shape, Target, grid
from sequence_kernels import SequenceModel

PRODUCTS = "matrix products"
EAGER, COMPILED, BFLOAT16 = "eager", "compiled", "bfloat16"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    s4d = {"_name_": "s4d", "d_state": 2 * shape["N"]}
    model = SequenceModel(shape["H"], n_layers=shape["layers"], layer=[s4d, "ff"], residual="R", norm="layer")
    x = torch.randn(shape["B"], shape["L"], shape["H"], device=device)
    return {"model": model.to(device), "x": x, "way": shape["way"]}


def ready(x: Inputs) -> Inputs:
    return {**x, "called": torch.compile(x["model"]) if x["way"] == COMPILED else x["model"]}


def precision(x: Inputs) -> AbstractContextManager[Any]:
    """What both sides compute in."""
    return torch.autocast(x["x"].device.type, torch.bfloat16) if x["way"] == BFLOAT16 else nullcontext()


def run(x: Inputs) -> Tensor:
    with precision(x):
        return x["called"](x["x"])[0]


def maps(x: Inputs) -> Inputs:
    """The weights of all linear maps, the last one first so that its answer stands for the model's, and for each as
    many rows of numbers as the model has elements."""
    weights = [part.weight.detach().clone() for part in x["model"].modules() if isinstance(part, nn.Linear)]
    weights.reverse()
    rows = [torch.randn(*x["x"].shape[:2], weight.shape[1], device=weight.device) for weight in weights]
    return {**x, "weights": nn.ParameterList(weights), "rows": nn.ParameterList(rows)}


def products(x: Inputs) -> tuple[Tensor, ...]:
    with precision(x):
        return tuple(F.linear(rows, weight) for rows, weight in zip(x["rows"], x["weights"], strict=True))


def cost(shape: Shape, mode: str) -> Cost:
    """Of each pair of layers three maps between H and 2 H channels, twice as much again backward, and a convolution."""
    batch, width, length = shape["B"], shape["H"], shape["L"]
    numbers, passes = 6 * width * width, 3 if mode == BOTH else 1
    linear = Cost(passes * 4 * numbers, passes * 2 * batch * length * numbers)
    pair = linear + chunked_cost(mode, batch, width, shape["N"], length)
    return Cost(shape["layers"] * pair.bytes, shape["layers"] * pair.flops)


def promise(way: str, at_most: float) -> Target:
    """Issue 23: so many times as long as the products take."""
    work = f"training step of 4 x (S4D, FF), d_model=256, B=4 L=4096, {way}"
    shape = f"B4-H256-N32-layers4-L4096-{way}"
    return Target(23, work, shape, PRODUCTS, round(1 / at_most, 2), BOTH, allocator=KEEPS)


BENCH = Bench(
    entry="SequenceModel",
    shapes={
        "quick": grid(B=1, H=64, N=32, layers=2, L=1024, way=EAGER),
        "full": grid(B=4, H=256, N=32, layers=4, L=4096, way=(EAGER, COMPILED, BFLOAT16)),
        "cuda": grid(B=16, H=512, N=32, layers=4, L=4096, way=(EAGER, COMPILED, BFLOAT16)),
    },
    inputs=inputs,
    run=run,
    setup=ready,
    cost=cost,
    wrt=("x", "model"),
    peers=(Peer(PRODUCTS, products, maps, wrt=("rows", "weights"), tolerance=math.inf),),
    targets=(promise(EAGER, 1.30), promise(COMPILED, 1.15), promise(BFLOAT16, 1.7)),
)
