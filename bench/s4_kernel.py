"""The convolution kernel of S4 by its generating function, from the parameters to (C, H, L) taps."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.harness.declare import BOTH, Bench, Cost, Inputs, Peer, Shape, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from sequence_kernels import S4, ops

UNFUSED = "ours, unfused"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    layer = S4(shape["H"], 2 * shape["N"], transposed=False).to(device).eval()
    return {"layer": layer, "L": shape["L"]}


def ours(x: Inputs) -> Tensor:
    return x["layer"].system().kernel(x["L"])


def unfused(x: Inputs) -> Tensor:
    """(1 + R)^2 Cauchy products with shared poles at the odd roots of unity, Woodbury, an inverse FFT; rank 1."""
    system, length = x["layer"].system(), x["L"]
    odd = length + (length + 1) % 2
    t = torch.tan(torch.arange(odd // 2 + 1, dtype=torch.float64, device=system.dt.device) * (torch.pi / odd))
    z = torch.complex(torch.zeros_like(t), 2 * t) / system.dt[:, None]
    w, p, b = system.continuous()
    left = torch.cat([system.truncated_readout(odd), p.conj()])
    right = torch.cat([b[None], p])
    r = ops.cauchy((left[:, None] * right).to(torch.complex64), z.to(torch.complex64), w.to(torch.complex64))
    generating = r[0, 0] - r[0, 1] * r[1, 0] / (1 + r[1, 1])
    factor = torch.complex(torch.ones_like(t), t).to(torch.complex64)
    return torch.fft.irfft(generating * factor, n=odd)[..., :length].unsqueeze(0)


def cost(shape: Shape, mode: str) -> Cost:
    """The Cauchy products' (four weights share a reciprocal; see `cauchy`); the small FFT is left out."""
    ends, nodes = shape["H"] * shape["N"], shape["L"] // 2 + 1
    forward = Cost(
        8 * 5 * ends + 4 * shape["H"] * shape["L"], ends * nodes * (7 + 32), reciprocals=ends * nodes
    )
    back = Cost(2 * forward.bytes, ends * nodes * (7 + 3 + 64), reciprocals=ends * nodes)
    return forward + back if mode == BOTH else forward


def like(x: Inputs) -> Inputs:
    pairs = x["layer"].n
    theirs = espnet.like(x["layer"], d_state=2 * pairs, transposed=False, mode="nplr", measure="legs")
    return {**x, "theirs": theirs}


BENCH = Bench(
    entry="layers.S4",
    shapes={
        "quick": grid(H=16, N=32, L=(1024, 2048)),
        "full": grid(H=256, N=32, L=(1024, 4096)),
        "cuda": grid(H=512, N=32, L=(4096, 16384)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    wrt=("layer",),
    peers=(
        Peer(UNFUSED, unfused),
        Peer(
            "ESPnet S4",
            espnet.kernel,
            like,
            wrt=("theirs",),
            unavailable=unless_installed("espnet2", espnet.INSTALL),
            tolerance=espnet.TOLERANCE,
        ),
    ),
)
