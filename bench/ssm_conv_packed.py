"""Packed sequences of random lengths through a layer, against a dense batch of as many elements and padded rows.

M is the mean length, of about L elements in all; A is 1 for S4 (a dense A), 0 for S4D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._packed import DENSE, PADDED, ROW, lengths_of
from bench._systems import chunked_cost
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from sequence_kernels import S4, S4D


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """L is a multiple of 512."""
    length, heads = shape["L"], shape["H"]
    lengths = lengths_of(length, shape["M"])
    x = torch.randn(1, length, heads, device=device)
    make = S4 if shape["A"] else S4D
    return {
        "layer": make(heads, 64, transposed=False).to(device).eval(),
        "x": x,
        "lengths": torch.tensor(lengths, device=device),
        "cu_seqlens": torch.tensor([0, *lengths], device=device).cumsum(0),
    }


def ours(x: Inputs) -> Tensor:
    return x["layer"](x["x"], cu_seqlens=x["cu_seqlens"])[0]


def dense(x: Inputs) -> Tensor:
    """Rows of 512: as many elements, and other sequences, so that the answer is another."""
    return x["layer"](x["x"].unflatten(1, (-1, ROW)).squeeze(0))[0].flatten(0, 1).unsqueeze(0)


def padded(x: Inputs) -> Tensor:
    y = x["layer"](x["rows"], lengths=x["lengths"])[0]
    return y[torch.arange(y.shape[1], device=y.device) < x["lengths"].unsqueeze(-1)].unsqueeze(0)


def as_rows(x: Inputs) -> Inputs:
    parts = x["x"].squeeze(0).detach().split(x["lengths"].tolist())
    return {**x, "rows": torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)}


def cost(shape: Shape, mode: str) -> Cost:
    """That of a dense batch: the convolution and the (H, 2 H) linear map (twice as much again backward)."""
    heads, length = shape["H"], shape["L"]
    found = chunked_cost(mode, length // ROW, heads, 32, ROW, dense=bool(shape["A"]))
    linear = Cost(bytes=8 * heads * heads, flops=4 * length * heads * heads)
    return found + linear + (linear + linear if mode == BOTH else Cost(0, 0))


def target(kind: int, mean: int, name: str, at_least: float) -> Target:
    work = f"{name} packed, mean length {mean}, forward+backward, of the time of a dense batch"
    return Target(18, work, f"A{kind}-H64-L131072-M{mean}", DENSE, at_least, BOTH)


BENCH = Bench(
    entry="ops.ssm_conv_packed",
    shapes={
        "quick": grid(A=(0, 1), H=32, L=16384, M=512),
        "full": grid(A=(0, 1), H=64, L=131072, M=(2056, 64)),
        "cuda": grid(A=(0, 1), H=512, L=131072, M=(2056, 64)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 1 head, 32 pairs (64 states), 16 chunks of 32: an output takes 32 + 64 multiply-adds, an input 64, a chunk and
        # pair a complex one (8); taps 32, e_out and e_in 2048 each, six powers of 64; and the map to 2 channels
        Counted(
            {"A": 0, "H": 1, "L": 512, "M": 256},
            FORWARD,
            Cost(4 * 1024 + 4 * (32 + 4096 + 384) + 8, 2 * 512 * (96 + 64) + 16 * 32 * 8 + 2 * 512 * 2),
        ),
    ),
    wrt=("x", "layer"),
    peers=(
        Peer(DENSE, dense, tolerance=math.inf),
        Peer(PADDED, padded, as_rows, wrt=("rows", "layer")),
    ),
    targets=(
        target(0, 2056, "S4D", 1 / 1.15),
        target(1, 2056, "S4", 1 / 1.35),
        target(0, 64, "S4D", 0.5),
        target(1, 64, "S4", 0.5),
    ),
)
