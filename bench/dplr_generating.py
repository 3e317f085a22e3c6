"""S4's generating function: one channel and one low-rank term for each of (H, N) poles, (L) nodes, to (1, H, L)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from sequence_kernels import ops

WORK = "S4's generating function, H=256, N=32, L=2049, R=1, C=1"
SINGLE, DOUBLE = "H256-N32-L2049-complex64", "H256-N32-L2049-complex128"
COMPLEX = {"complex64": torch.complex64, "complex128": torch.complex128}


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """Poles of S4 with steps from 1e-3 to 1e-1; nodes of roots of unity, up to the infinite one."""
    h, n, length, dtype = shape["H"], shape["N"], shape["L"], COMPLEX[shape["dtype"]]
    dt = torch.logspace(-3, -1, h, dtype=torch.float64, device=device)
    t = torch.tan(torch.linspace(0, 0.499 * math.pi, length, dtype=torch.float64, device=device))
    c, p, b = (torch.randn(*k, h, n, dtype=dtype, device=device) for k in ((1,), (1,), ()))
    w = (poles(h, n, device) / dt.unsqueeze(-1)).to(dtype)
    return {"c": c, "p": p, "b": b, "w": w, "dt": dt.to(dtype.to_real()), "t": t.to(dtype.to_real())}


def ours(x: Inputs) -> Tensor:
    return ops.dplr_generating(x["c"], x["p"], x["p"].conj(), x["b"], x["w"], x["dt"], x["t"])


def unfused(x: Inputs) -> Tensor:
    """Our own Cauchy products, then the correction and the factor by the fewest passes that torch can do them in."""
    half, z = x["dt"].unsqueeze(-1) / 2, torch.complex(torch.zeros_like(x["t"]), x["t"])
    left, right = torch.cat((x["c"], x["p"].conj())), half * torch.cat((x["b"].unsqueeze(0), x["p"]))
    r = ops.cauchy(left.unsqueeze(1) * right, z, half * x["w"])
    return ((r[0, 0] - r[0, 1] * r[1, 0] / (1 + r[1, 1])) * (1 + z)).unsqueeze(0)


def cost(shape: Shape, mode: str) -> Cost:
    """One reciprocal a pole and node (7 operations before it), and 4 multiply-adds for each of the four products.

    A node and head takes 3 complex products and a quotient more. Backward: the products again, and with the same
    reciprocals both orders of the transposed ones, as in bench/cauchy.py. Bytes: inputs and output once.
    """
    heads, nodes, size = shape["H"], shape["L"], 8 if shape["dtype"] == "complex64" else 16
    pairs, outputs = heads * shape["N"] * nodes, heads * nodes
    moved = size * (4 * heads * shape["N"] + outputs) + size * nodes // 2
    forward = Cost(moved, pairs * (7 + 32) + outputs * 40, reciprocals=pairs + outputs)
    back = Cost(2 * moved, pairs * (7 + 32 + 3 + 64) + outputs * 100, reciprocals=pairs + outputs)
    return forward + back if mode == BOTH else forward


BENCH = Bench(
    entry="ops.dplr_generating",
    shapes={
        "quick": grid(H=16, N=32, L=(513, 2049), dtype="complex64"),
        "full": grid(H=256, N=32, L=2049, dtype=("complex64", "complex128")),
        "cuda": grid(H=(256, 1024), N=32, L=(2049, 8193), dtype=("complex64", "complex128")),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 15 pairs of 7 + 4 products * 8 operations, and 5 outputs; c, p, b, w, the output, and t, which is real
        Counted(
            {"H": 1, "N": 3, "L": 5, "dtype": "complex64"},
            FORWARD,
            Cost(8 * (4 * 3 + 5) + 4 * 5, 15 * (7 + 32) + 5 * 40, 15 + 5),
        ),
        # and backward: the products again, the squares of the reciprocals, and two moments of the four products
        Counted(
            {"H": 1, "N": 3, "L": 5, "dtype": "complex128"},
            BOTH,
            Cost(
                3 * (16 * (4 * 3 + 5) + 8 * 5),
                15 * (7 + 32) + 5 * 40 + 15 * (7 + 32 + 3 + 2 * 32) + 5 * 100,
                2 * (15 + 5),
            ),
        ),
    ),
    wrt=("c", "p", "b", "w"),
    gate=3,
    peers=(Peer("ours unfused", unfused),),
    targets=(
        Target(5, f"{WORK}, forward, complex64", SINGLE, "ours unfused", 2),
        Target(5, f"{WORK}, forward, complex128", DOUBLE, "ours unfused", 2),
    ),
)
