"""A step of Mamba's recurrence (P = 1, a decay an entry) or Mamba-2's (one a head): states read and written once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    batch, heads, width, size = (shape[key] for key in "BHPN")
    channels = (heads,) if width == 1 else (heads, width)
    return {
        "state": torch.randn(batch, *channels, size, device=device),
        "u": torch.randn(batch, *channels, device=device),
        "delta": torch.randn(batch, heads, device=device),
        "a": -torch.rand(heads, *((size,) if width == 1 else ()), device=device),
        "b": torch.randn(batch, size, device=device),
        "c": torch.randn(batch, size, device=device),
        "d": torch.ones(heads, device=device),
    }


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.selective_step(**x, delta_softplus=True)


def naive(x: Inputs) -> tuple[Tensor, Tensor]:
    """As mamba_ssm's step computes it without kernels."""
    dt, scan = F.softplus(x["delta"]), x["a"].dim() == 2
    decay = torch.exp(dt.unsqueeze(-1) * x["a"]) if scan else torch.exp(dt * x["a"])[..., None, None]
    drive = dt * x["u"] if scan else dt.unsqueeze(-1) * x["u"]
    b, c = (x[k].unsqueeze(1) if scan else x[k][:, None, None] for k in "bc")
    state = x["state"] * decay + drive.unsqueeze(-1) * b
    skip = x["d"] if scan else x["d"].unsqueeze(-1)
    return (state * c).sum(-1) + skip * x["u"], state


def cost(shape: Shape, mode: str) -> Cost:
    """A state: three multiply-adds, and an exponential and a product where each has a decay of its own."""
    batch, heads, width, size = (shape[key] for key in "BHPN")
    states, decays = batch * heads * width * size, batch * heads * (size if width == 1 else 1)
    moved = 8 * states + 4 * batch * (heads * (2 * width + 1) + 2 * size) + 4 * (decays // batch + heads)
    return Cost(moved, 6 * states + decays, 0, decays + 2 * batch * heads)


BENCH = Bench(
    entry="ops.selective_step",
    shapes={
        "quick": grid(B=1, H=1536, P=1, N=16) + grid(B=1, H=24, P=64, N=128),
        "full": grid(B=16, H=1536, P=1, N=16) + grid(B=16, H=24, P=64, N=128),
        "cuda": grid(B=(1, 64), H=1536, P=1, N=16) + grid(B=(1, 64), H=24, P=64, N=128),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 x 3 heads of 5 channels of 7 entries; u and y, a dt, b and c; a and d
        Counted(
            {"B": 2, "H": 3, "P": 5, "N": 7},
            FORWARD,
            Cost(8 * 210 + 4 * 2 * (3 * 11 + 14) + 4 * (3 + 3), 6 * 210 + 6, 0, 6 + 12),
        ),
    ),
    peers=(Peer("torch naive", naive),),
)
