"""S4 layers on sequences of tens of elements, as decoders have them, against ESPnet's and their linear map alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.harness.declare import BOTH, Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from bench.ssm_direct import cost as direct_cost
from sequence_kernels import S4

ESPNET, MAP = "ESPnet S4", "linear map"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    layer = S4(shape["H"], 2 * shape["N"], mode=shape["mode"], transposed=False)
    x = torch.randn(shape["B"], shape["L"], shape["H"], device=device)
    return {"layer": layer.to(device), "x": x, "mode": shape["mode"]}


def like(x: Inputs) -> Inputs:
    layer = x["layer"]
    theirs = espnet.like(layer, d_state=2 * layer.n, transposed=False, mode=x["mode"])
    return {**x, "theirs": theirs}


def halves(x: Inputs) -> Inputs:
    """The map to twice the width, before its GLU, as two: each answer then has the shape of the layer's."""
    linear = x["layer"].output_linear[0]
    parts = [nn.Linear(linear.in_features, linear.in_features) for _ in range(2)]
    return {**x, "maps": nn.ModuleList(parts).to(x["x"].device)}


def linear(x: Inputs) -> tuple[Tensor, ...]:
    return tuple(part(x["x"]) for part in x["maps"])


def cost(shape: Shape, mode: str) -> Cost:
    """The convolution, and the (H, 2 H) map; twice as much again backward."""
    b, h, length = (shape[key] for key in "BHL")
    rank = int(shape["mode"] == "nplr")
    numbers, passes = 2 * h * h, 3 if mode == BOTH else 1
    conv = direct_cost({**shape, "R": rank}, mode)
    return conv + Cost(passes * 4 * numbers, passes * 2 * b * length * numbers)


def promises() -> tuple[Target, ...]:
    """Issue 23's rows of short sequences."""
    found = []
    for mode, times in (("diag", 8), ("nplr", 12)):
        work, shape = (
            f"S4 layer, {mode}, training step, d_model=256 d_state=64 B=8 L=80",
            f"B8-H256-N32-L80-{mode}",
        )
        found.append(Target(23, work, shape, ESPNET, times, BOTH))
        found.append(Target(23, work, shape, MAP, 0.5, BOTH))
    return tuple(found)


BENCH = Bench(
    entry="layers.S4",
    shapes={
        "quick": grid(B=2, H=32, N=32, L=80, mode=("diag", "nplr")),
        "full": grid(B=8, H=256, N=32, L=80, mode=("diag", "nplr"))
        + grid(B=1, H=256, N=32, L=64, mode=("diag", "nplr")),
        "cuda": grid(B=8, H=256, N=32, L=80, mode=("diag", "nplr")),
    },
    inputs=inputs,
    run=lambda x: x["layer"](x["x"])[0],
    cost=cost,
    wrt=("x", "layer"),
    peers=(
        Peer(
            ESPNET,
            espnet.forward,
            like,
            wrt=("x", "theirs"),
            unavailable=unless_installed("espnet2", espnet.INSTALL),
            tolerance=espnet.TOLERANCE,
        ),
        Peer(MAP, linear, halves, wrt=("x", "maps"), tolerance=math.inf),
    ),
    targets=promises(),
)
