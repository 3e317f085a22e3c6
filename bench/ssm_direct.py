"""The convolution of short sequences, from a discrete model to its outputs: without chunk matrices, and with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops

WIDE = torch.complex128


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """S4D's poles, and with R > 0 terms so small that the powers of A stay bounded."""
    h, n, r = shape["H"], shape["N"], shape["R"]

    def random(*size: int) -> Tensor:
        return torch.randn(*size, dtype=WIDE, device=device)

    return {
        "u": torch.randn(shape["B"], h, shape["L"], device=device),
        "a": poles(h, n, device).to(WIDE).exp(),
        "p": 1e-2 * random(r, h, n),
        "q": 1e-2 * random(r, h, n),
        "b": random(h, n),
        "c": random(1, h, n).to(torch.complex64),
        "d": torch.randn(1, h, device=device),
    }


def of(x: Inputs) -> list[Any]:
    return [x[name] for name in "apqbc"]


def in_chunks(x: Inputs) -> Tensor:
    return ops.ssm_conv(x["u"], *ops.ssm_chunk(*of(x), 16, tail=False), x["d"])[0]


def cost(shape: Shape, mode: str) -> Cost:
    """A state, of N complex numbers: 8 operations each for A and the sum that reads it, and 12 a term, L times a head;
    and L (L + 1) / 2 multiply-adds a row and head. Backward: the states again and twice as much for their adjoint; two
    such sums. Bytes: what is given and made once; backward u, g and du, and the model and its gradients."""
    b, h, n, r, length = (shape[key] for key in "BHNRL")
    states = length * h * n * (16 + 12 * r)
    sums = b * h * length * (length + 1)
    model = h * n * (16 * (2 + 2 * r) + 8) + 4 * h
    forward = Cost(8 * b * h * length + model, states + sums)
    return forward + Cost(12 * b * h * length + 2 * model, 3 * states + 2 * sums) if mode == BOTH else forward


BENCH = Bench(
    entry="ops.ssm_direct",
    shapes={
        "quick": grid(B=8, H=64, N=32, R=(0, 1), L=80),
        "full": grid(B=(1, 8), H=256, N=32, R=(0, 1), L=80),
        "cuda": grid(B=16, H=512, N=32, R=(0, 1), L=80),
    },
    inputs=inputs,
    run=lambda x: ops.ssm_direct(x["u"], *of(x), x["d"]),
    cost=cost,
    counted=(
        # 3 states of 2 numbers: 16 + 12 each. 2 rows of 1 + 2 + 3 multiply-adds. u and y of 6 numbers, a, p, q and b of
        # 2 numbers of 16 bytes each, c of 8, d.
        Counted(
            {"B": 2, "H": 1, "N": 2, "R": 1, "L": 3},
            FORWARD,
            Cost(4 * (6 + 6) + 16 * 4 * 2 + 8 * 2 + 4, 3 * 2 * 28 + 2 * 2 * 6),
        ),
    ),
    wrt=("u", "a", "p", "q", "b", "c", "d"),
    peers=(Peer("chunks of 16", in_chunks),),
)
