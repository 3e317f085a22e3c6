"""The short causal convolution before Mamba's recurrence, with silu; channels side by side where the shape says so."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from sequence_kernels import ops

LAST, FIRST = "B1-D1536-W4-L2048-channels", "B1-D1536-W4-L2048-elements"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    batch, channels, length = shape["B"], shape["D"], shape["L"]
    sizes = (batch, length, channels) if shape["layout"] == "channels" else (batch, channels, length)
    x = torch.randn(sizes, device=device)
    return {
        "x": x,
        "weight": torch.randn(channels, shape["W"], device=device),
        "bias": torch.randn(channels, device=device),
        "layout": shape["layout"],
    }


def placed(x: Inputs) -> Tensor:
    return x["x"].mT if x["layout"] == "channels" else x["x"]


def ours(x: Inputs) -> Tensor:
    return ops.causal_conv1d(placed(x), x["weight"], x["bias"], activation="silu")[0]


def conv1d(x: Inputs) -> Tensor:
    """As transformers computes it on a CPU."""
    length, width = placed(x).shape[-1], x["weight"].shape[-1]
    y = F.conv1d(placed(x), x["weight"].unsqueeze(1), x["bias"], padding=width - 1, groups=len(x["bias"]))
    return F.silu(y[..., :length])


def cost(shape: Shape, mode: str) -> Cost:
    """A multiply-add a tap, and silu of an exponential, a reciprocal and three more."""
    elements, parameters = shape["B"] * shape["D"] * shape["L"], shape["D"] * (shape["W"] + 1)
    width = shape["W"]
    forward = Cost(8 * elements + 4 * parameters, (2 * width + 3) * elements, elements, elements)
    back = Cost(12 * elements + 8 * parameters, (6 * width + 9) * elements, elements, elements)
    return forward + back if mode == BOTH else forward


_SIZES = {"B": 1, "D": 1536, "W": 4, "L": 2048}
BENCH = Bench(
    entry="ops.causal_conv1d",
    shapes={
        "quick": grid(B=1, D=256, W=4, L=512, layout=("channels", "elements")),
        "full": grid(**_SIZES, layout=("channels", "elements")),
        "cuda": grid(B=8, D=1536, W=4, L=2048, layout=("channels", "elements")),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 x 3 x 5 elements read and written, 3 x (4 + 1) parameters read; 4 multiply-adds and 3 more, 1 / and e
        Counted(
            {"B": 2, "D": 3, "W": 4, "L": 5, "layout": "channels"},
            FORWARD,
            Cost(2 * 4 * 30 + 4 * 15, 11 * 30, 30, 30),
        ),
    ),
    wrt=("x", "weight", "bias"),
    gate=1.5,
    peers=(Peer("torch conv1d", conv1d),),
    targets=(
        Target(17, "causal_conv1d with silu, channels side by side", LAST, "torch conv1d", 3),
        Target(17, "causal_conv1d with silu, elements side by side", FIRST, "torch conv1d", 3),
    ),
)
