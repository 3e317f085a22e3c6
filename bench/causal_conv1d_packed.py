"""The short causal convolution of packed sequences of random lengths, M on average, against one row of as many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import causal_conv1d
from bench._packed import packed
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops

_LAYOUT = {"B": 1, "layout": "channels"}


def one_row(shape: Shape, device: torch.device) -> Inputs:
    return causal_conv1d.inputs({**shape, **_LAYOUT}, device)


def ours(x: Inputs) -> Tensor:
    given = causal_conv1d.placed(x), x["weight"], x["bias"]
    return ops.causal_conv1d(*given, activation="silu", cu_seqlens=x["cu_seqlens"])[0]


def cost(shape: Shape, mode: str) -> Cost:
    """That of one row."""
    return causal_conv1d.cost({**shape, **_LAYOUT}, mode)


BENCH = Bench(
    entry="ops.causal_conv1d_packed",
    shapes={
        "quick": grid(D=256, W=4, L=4096, M=(512, 64)),
        "full": grid(D=1536, W=4, L=16384, M=(1024, 64)),
        "cuda": grid(D=1536, W=4, L=65536, M=(1024, 64)),
    },
    inputs=packed(one_row),
    run=ours,
    cost=cost,
    counted=(
        # 3 x 5 elements read and written, 3 x (4 + 1) parameters read; 4 multiply-adds and 3 more, 1 / and e
        Counted(
            {"D": 3, "W": 4, "L": 5, "M": 16},
            FORWARD,
            Cost(2 * 4 * 15 + 4 * 15, 11 * 15, 15, 15),
        ),
    ),
    wrt=("x", "weight", "bias"),
    peers=(Peer("one row", causal_conv1d.ours, tolerance=math.inf),),
)
