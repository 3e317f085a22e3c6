"""Convolution with explicit taps, against the plain form: rfft, product, irfft."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    h, length = shape["H"], shape["L"]
    fading = torch.exp(-torch.linspace(0, 8, length, device=device))
    return {
        "u": torch.randn(shape["B"], h, length, device=device),
        "k": torch.randn(1, h, length, device=device) * fading,
        "d": torch.randn(1, h, device=device),
    }


def ours(x: Inputs) -> Tensor:
    return ops.fft_conv(x["u"], x["k"], x["d"])


def rfft(x: Inputs) -> Tensor:
    size = 2 * x["u"].shape[-1]
    spectrum = torch.fft.rfft(x["u"], n=size) * torch.fft.rfft(x["k"][0], n=size)
    y = torch.fft.irfft(spectrum, n=size)[..., : x["u"].shape[-1]]
    return (y + x["d"][0, :, None] * x["u"]).unsqueeze(1)


def cost(shape: Shape, mode: str) -> Cost:
    """Real transforms of 2 L points at 2.5 n log2 n operations, complex products of L + 1 bins, and the skip.

    Backward: two more transforms of each sequence, one of the taps, two products.
    """
    b, h, length = shape["B"], shape["H"], shape["L"]
    size = 2 * length
    transform = round(2.5 * size * math.log2(size))
    product = 6 * b * h * (length + 1) + 2 * b * h * length
    forward = Cost(4 * (2 * b * h * length + h * length + h), (2 * b + 1) * h * transform + product)
    back = Cost(4 * (3 * b * h * length + 2 * h * length + 2 * h), (2 * b + 1) * h * transform + 2 * product)
    return forward + back if mode == BOTH else forward


BENCH = Bench(
    entry="ops.fft_conv",
    shapes={
        "quick": grid(B=8, H=16, L=(1024, 4096, 16384)),
        "full": grid(B=8, H=64, L=(1024, 1000, 4096, 16384, 65536)),
        "cuda": grid(B=16, H=512, L=(1024, 4096, 16384, 65536)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # transforms of 8 real points: u, k and y, at 2.5 * 8 * 3; 5 complex products, 4 skips
        Counted({"B": 1, "H": 1, "L": 4}, FORWARD, Cost(4 * (4 + 4 + 4 + 1), 3 * 60 + 5 * 6 + 4 * 2)),
    ),
    wrt=("u", "k", "d"),
    peers=(Peer("torch rfft", rfft),),
)
