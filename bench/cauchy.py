"""Sums of partial fractions over conjugate pairs: V weights for each of (H, N) poles, (L) nodes, to (V, H, L)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import keops
from sequence_kernels import ops

WORK = "cauchy, v of 4 x H=256, N=32, L=2049"
SHAPE = "V4-H256-N32-L2049-imaginary"
GENERAL = "V4-H256-N32-L2049-general"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """Poles of S4 scaled by steps from 1e-3 to 1e-1; nodes on the imaginary axis, or a little off it."""
    h, n, length = shape["H"], shape["N"], shape["L"]
    t = 2 * torch.tan(torch.linspace(0, 0.49 * math.pi, length, dtype=torch.float64, device=device))
    off = torch.linspace(0.1, 0.5, length, dtype=torch.float64, device=device)
    z = torch.complex(off if shape["z"] == "general" else torch.zeros_like(t), t).to(torch.complex64)
    return {
        "v": torch.randn(shape["V"], h, n, dtype=torch.complex64, device=device),
        "z": z,
        "w": poles(h, n, device),
    }


def ours(x: Inputs) -> Tensor:
    return ops.cauchy(x["v"], x["z"], x["w"])


def naive(x: Inputs) -> Tensor:
    v, w = (torch.cat([t, t.conj()], -1)[..., None] for t in (x["v"], x["w"]))
    return (v / (x["z"] - w)).sum(-2)


def cost(shape: Shape, mode: str) -> Cost:
    """With both halves as one fraction, (z a + b) / (z^2 - 2 z Re w + |w|^2): one reciprocal a pole and node.

    Each pair costs 7 operations for that reciprocal with z on the imaginary axis, 9 with a general z, and 4
    multiply-adds for each of the V weights that share it. Backward, dv takes as many multiply-adds for order 1; dw
    takes the square of the reciprocal (3 operations) and as many again.
    """
    pairs = shape["H"] * shape["N"] * shape["L"]
    denominator = 9 if shape["z"] == "general" else 7
    ends = 8 * shape["H"] * shape["N"]
    weights, nodes = shape["V"] * ends, 8 * shape["L"]
    out = 8 * shape["V"] * shape["H"] * shape["L"]
    each = 8 * shape["V"]
    forward = Cost(weights + nodes + ends + out, pairs * (denominator + each), reciprocals=pairs)
    back = Cost(2 * (weights + ends) + nodes + out, pairs * (denominator + 3 + 2 * each), reciprocals=pairs)
    return forward + back if mode == BOTH else forward


def fits(shape: Shape) -> str | None:
    size = 16 * shape["V"] * shape["H"] * shape["N"] * shape["L"]
    return "would hold arrays of over 2 GiB" if size > 2**31 else None


BENCH = Bench(
    entry="ops.cauchy",
    shapes={
        "quick": grid(V=4, H=16, N=32, L=(513, 2049), z="imaginary")
        + grid(V=4, H=16, N=32, L=513, z="general"),
        "full": grid(V=4, H=256, N=32, L=(513, 2049, 8193), z="imaginary")
        + grid(V=4, H=256, N=32, L=2049, z="general"),
        "cuda": grid(V=4, H=1024, N=32, L=(513, 2049, 8193), z="imaginary"),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 weights of 1 x 3 poles, 5 nodes: 15 pairs of 7 + 2 * 8 operations
        Counted(
            {"V": 2, "H": 1, "N": 3, "L": 5, "z": "imaginary"},
            FORWARD,
            Cost(8 * (6 + 3 + 5 + 10), 15 * (7 + 16), 15),
        ),
        Counted(
            {"V": 2, "H": 1, "N": 3, "L": 5, "z": "general"},
            BOTH,
            Cost(8 * (6 + 3 + 5 + 10) + 8 * (6 + 3 + 5 + 10 + 6 + 3), 15 * (9 + 16) + 15 * (9 + 3 + 32), 30),
        ),
    ),
    wrt=("v", "w"),
    gate=6,
    peers=(
        Peer("torch naive", naive, serves=fits),
        Peer("pykeops", keops.cauchy, unavailable=unless_installed("pykeops", "pykeops"), quick=False),
    ),
    targets=(
        Target(5, f"{WORK}, forward", SHAPE, "torch naive", 80),
        Target(5, f"{WORK}, forward+backward", SHAPE, "torch naive", 80, mode=BOTH),
        Target(5, f"{WORK}, forward", SHAPE, "pykeops", 45),
        Target(5, f"{WORK}, general z, forward", GENERAL, "torch naive", 40),
    ),
)
