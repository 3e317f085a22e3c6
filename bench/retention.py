"""Heads of 64 channels that share real poles of one decay: what linear-attention libraries call retention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._systems import CHUNK, chunked_cost
from bench.harness.declare import Bench, Cost, Inputs, Peer, Shape, grid
from bench.harness.unavailable import unless_installed_on_cuda
from bench.peers import scans
from sequence_kernels import ops
from sequence_kernels.ssm import DiagonalSystem, chunk_matrices

WIDTH = 64


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """N real states a channel; a head's channels share its decay, input vector (ones) and read-out."""
    heads = shape["H"] // WIDTH
    decay = -torch.logspace(-2.5, -0.5, heads, dtype=torch.float64, device=device)
    readout = torch.randn(heads, shape["N"], device=device) / math.sqrt(shape["N"])
    x = decay.repeat_interleave(WIDTH)[:, None].expand(-1, shape["N"]).to(torch.complex128)
    c = readout.repeat_interleave(WIDTH, 0)[None].to(torch.complex64)
    matrices = chunk_matrices(DiagonalSystem(x, torch.ones_like(x), c), CHUNK)
    u = torch.randn(shape["B"], shape["H"], shape["L"], device=device)
    return {"u": u, "matrices": matrices, "decay": decay.float(), "readout": readout}


def ours(x: Inputs) -> Tensor:
    return ops.ssm_conv(x["u"], *x["matrices"])[0].squeeze(1)


def rfft(x: Inputs) -> Tensor:
    length = x["u"].shape[-1]
    kernel = (
        2
        * x["readout"].sum(-1, keepdim=True)
        * torch.exp(x["decay"][:, None] * torch.arange(length, device=x["u"].device))
    )
    spectrum = torch.fft.rfft(kernel, n=2 * length).repeat_interleave(WIDTH, 0)
    return torch.fft.irfft(torch.fft.rfft(x["u"], n=2 * length) * spectrum, n=2 * length)[..., :length]


def cost(shape: Shape, mode: str) -> Cost:
    return chunked_cost(mode, shape["B"], shape["H"], shape["N"], shape["L"])


BENCH = Bench(
    entry="ops.ssm_conv",
    shapes={
        "full": grid(B=4, H=256, N=16, L=4096),
        "cuda": grid(B=8, H=2048, N=16, L=(2048, 8192)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    wrt=("u",),
    peers=(
        Peer("torch rfft", rfft),
        Peer(
            "fla-core",
            scans.simple_gla,
            scans.for_simple_gla,
            unavailable=unless_installed_on_cuda("fla", "fla-core"),
        ),
    ),
)
