"""Sums of exponentials, the kernel of a diagonal SSM: (H, N) weights and exponents to (H, L)."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import levels, poles, vandermonde_cost
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed, unless_on_cpu
from bench.peers import compiled, keops
from sequence_kernels import ops

WORK = "vandermonde H=256 N=32 L=4096"
SHAPE = "H256-N32-L4096"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    x = poles(shape["H"], shape["N"], device)
    return {"v": torch.randn_like(x), "x": x, "L": shape["L"]}


def ours(x: Inputs) -> Tensor:
    return ops.vandermonde(x["v"], x["x"], x["L"])


def naive(x: Inputs) -> Tensor:
    powers = torch.exp(x["x"][..., None] * torch.arange(x["L"], device=x["x"].device))
    return 2 * torch.einsum("hn,hnl->hl", x["v"], powers).real


def two_level(x: Inputs) -> Tensor:
    """l = i T + j, as a product of the matrices of e^{x i T} and of e^{x j}."""
    w = x["x"][..., None]
    rows, columns = levels(x["L"])
    left = x["v"][..., None] * torch.exp(w * (torch.arange(rows, device=w.device) * columns))
    right = torch.exp(w * torch.arange(columns, device=w.device))
    product = torch.cat([left.real, -left.imag], -2).mT @ torch.cat([right.real, right.imag], -2)
    return 2 * product.flatten(-2)[..., : x["L"]]


def cost(shape: Shape, mode: str) -> Cost:
    """One pass forward; backward one more, for the moments of powers 0 and 1."""
    sizes = shape["H"], shape["N"], shape["L"]
    forward = vandermonde_cost(*sizes)
    back = vandermonde_cost(*sizes, moments=2) + Cost(bytes=8 * shape["H"] * shape["N"], flops=0)
    return forward + back if mode == BOTH else forward


def fits(shape: Shape) -> str | None:
    size = 8 * shape["H"] * shape["N"] * shape["L"]
    return "would hold arrays of over 1 GiB" if size > 2**30 else None


BENCH = Bench(
    entry="ops.vandermonde",
    shapes={
        "quick": grid(H=32, N=32, L=(1024, 4096)),
        "full": grid(H=256, N=32, L=(1024, 4096, 16384, 65536)),
        "cuda": grid(H=1024, N=32, L=(1024, 4096, 16384, 65536)),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 1 pole, 4 positions: split 2 x 2, so 4 complex exponentials; v and x read, 4 floats written; each position one
        # complex product's real part added up (4), each row of the split one complex product (6)
        Counted({"H": 1, "N": 1, "L": 4}, FORWARD, Cost(8 + 8 + 4 * 4, 4 * 4 + 2 * 6, 0, 4 * 3)),
        # and backward: g, v, x read, dv, dx written; two moments
        Counted({"H": 1, "N": 1, "L": 4}, BOTH, Cost(32 + 16 + 32, 28 + 2 * 28, 0, 12 + 12)),
    ),
    wrt=("v", "x"),
    gate=3,
    peers=(
        Peer("torch naive", naive, serves=fits),
        Peer("torch two-level", two_level),
        Peer("pykeops", keops.vandermonde, unavailable=unless_installed("pykeops", "pykeops"), quick=False),
        Peer("torch.compile", compiled.run, compiled.of(two_level), unavailable=unless_on_cpu, quick=False),
    ),
    targets=(
        Target(5, f"{WORK}, forward", SHAPE, "torch naive", 100),
        Target(5, f"{WORK}, forward+backward", SHAPE, "torch naive", 80, mode=BOTH),
        Target(5, f"{WORK}, forward", SHAPE, "pykeops", 70),
        Target(5, f"{WORK}, forward", SHAPE, "torch two-level", 4),
    ),
)
