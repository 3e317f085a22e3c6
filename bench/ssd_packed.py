"""State-space duality over packed sequences of random lengths, M on average, against a dense batch of as many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import ssd
from bench._packed import DENSE, ROW, lengths_of
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid

_OF_ELEMENTS = ("x", "dt", "b", "c")


def inputs(shape: Shape, device: torch.device) -> Inputs:
    bounds = torch.tensor([0, *lengths_of(shape["L"], shape["M"])], device=device).cumsum(0)
    return {**ssd.inputs({"B": 1, **shape}, device), "cu_seqlens": bounds}


def dense(x: Inputs) -> Tensor:
    """Rows of 512: other sequences, so that the answer is another."""
    rows = {k: v.unflatten(1, (-1, ROW)).squeeze(0) if k in _OF_ELEMENTS else v for k, v in x.items()}
    del rows["cu_seqlens"]
    return ssd.ours(rows)


def cost(shape: Shape, mode: str) -> Cost:
    """That of a dense batch."""
    return ssd.cost({**shape, "B": shape["L"] // ROW, "L": ROW}, mode)


BENCH = Bench(
    entry="ops.ssd_packed",
    shapes={
        "quick": grid(L=2048, M=256, H=4, P=64, N=64),
        "full": grid(L=8192, M=(1024, 64), H=24, P=64, N=128),
        "cuda": grid(L=65536, M=(1024, 64), H=24, P=64, N=128),
    },
    inputs=inputs,
    run=ssd.ours,
    cost=cost,
    counted=(
        # a row of 512: 5 heads with 7 x, 7 y and a dt, 11 of b and of c; 5 of a and of d; products of 5 x 7 x 11 states
        Counted(
            {"L": 512, "M": 256, "H": 5, "P": 7, "N": 11},
            FORWARD,
            Cost(4 * (512 * (5 * 15 + 22) + 10), 4 * 512 * 5 * 77, 0, 512 * 5),
        ),
    ),
    wrt=("x", "dt", "a", "b", "c", "d"),
    peers=(Peer(DENSE, dense, tolerance=math.inf),),
)
