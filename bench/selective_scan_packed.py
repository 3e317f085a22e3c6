"""The selective scan of packed sequences of random lengths, M on average, against a dense batch of as many elements."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench import selective_scan
from bench._packed import DENSE, ROW, lengths_of
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid

_OF_ELEMENTS = ("u", "delta", "b", "c", "z")


def inputs(shape: Shape, device: torch.device) -> Inputs:
    bounds = torch.tensor([0, *lengths_of(shape["L"], shape["M"])], device=device).cumsum(0)
    return {**selective_scan.inputs({"B": 1, **shape}, device), "cu_seqlens": bounds}


def dense(x: Inputs) -> tuple[Tensor, Tensor]:
    """Rows of 512: other sequences, so that the answer is another."""
    rows = {k: v.unflatten(1, (-1, ROW)).squeeze(0) if k in _OF_ELEMENTS else v for k, v in x.items()}
    del rows["cu_seqlens"]
    return selective_scan.ours(rows)


def cost(shape: Shape, mode: str) -> Cost:
    """That of a dense batch."""
    return selective_scan.cost({**shape, "B": shape["L"] // ROW, "L": ROW}, mode)


BENCH = Bench(
    entry="ops.selective_scan_packed",
    shapes={
        "quick": grid(L=4096, M=512, D=64, N=16),
        "full": grid(L=16384, M=(1024, 64), D=512, N=16),
        "cuda": grid(L=65536, M=(1024, 64), D=1536, N=16),
    },
    inputs=inputs,
    run=selective_scan.ours,
    cost=cost,
    counted=(
        # a row of 512: 3 channels of u, delta, z and y; 4 of b and of c; a; d and delta_bias; the state
        Counted(
            {"L": 512, "M": 256, "D": 3, "N": 4},
            FORWARD,
            Cost(4 * (512 * (12 + 8) + 12 + 6 + 12), 512 * (7 * 12 + 8 * 3), 0, 512 * (12 + 9)),
        ),
    ),
    wrt=("u", "delta", "a", "b", "c", "d", "z", "delta_bias"),
    peers=(Peer(DENSE, dense, tolerance=math.inf),),
)
