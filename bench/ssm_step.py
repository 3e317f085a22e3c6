"""One time step of an SSM, diagonal or plus low rank R in O(N): every state is read and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import diagonal
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_on_cpu
from bench.peers import compiled
from sequence_kernels import ops

SHAPE, LARGE = "B64-H1024-N32", "B512-H1024-N32"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """A shape without R is diagonal."""
    b, h, n = shape["B"], shape["H"], shape["N"]
    system = diagonal(h, n, device)

    def low_rank() -> Tensor:
        return torch.randn(shape["R"], h, n, dtype=torch.complex64, device=device) / n

    return {
        "state": torch.randn(b, h, n, dtype=torch.complex64, device=device),
        "u": torch.randn(b, h, device=device),
        **system.step_parameters()._asdict(),
        "d": torch.randn(1, h, device=device),
        "p": low_rank() if "R" in shape else None,
        "q": low_rank() if "R" in shape else None,
    }


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.ssm_step(**x)


def naive(x: Inputs) -> tuple[Tensor, Tensor]:
    moved = x["a_minus_one"] * x["state"] + x["b"] * x["u"].unsqueeze(-1)
    if x["p"] is not None:
        pulled = 2 * torch.einsum("rhn,bhn->rbh", x["q"], x["state"]).real
        moved = moved + torch.einsum("rbh,rhn->bhn", pulled.to(x["p"].dtype), x["p"])
    state = x["state"] + moved
    y = 2 * torch.einsum("chn,bhn->bch", x["c"], state).real
    return y + x["d"] * x["u"].unsqueeze(1), state


def dense_matrix(x: Inputs) -> Inputs:
    """The state over all N conjugate pairs as one complex (2 N, 2 N) matrix a head."""
    full = lambda t: torch.cat([t, t.conj()], -1)  # noqa: E731
    low_rank = torch.einsum("rhn,rhm->hnm", full(x["p"]), full(x["q"]))
    return {
        **x,
        "matrix": torch.diag_embed(1 + full(x["a_minus_one"])) + low_rank,
        "full": {name: full(x[name]) for name in ("state", "b", "c")},
    }


def dense(x: Inputs) -> tuple[Tensor, Tensor]:
    f = x["full"]
    state = torch.einsum("hnm,bhm->bhn", x["matrix"], f["state"]) + f["b"] * x["u"].unsqueeze(-1)
    y = torch.einsum("chn,bhn->bch", f["c"], state).real
    return y + x["d"] * x["u"].unsqueeze(1), state[..., : x["b"].shape[-1]]


def has_a_rank(shape: Shape) -> str | None:
    return None if "R" in shape else "a diagonal matrix needs no dense one"


def cost(shape: Shape, mode: str) -> Cost:
    """A state: a complex product and a complex-real multiply-add (10), and the real part of a product (4).

    For each rank the real part of another (4) and another multiply-add (4).
    """
    b, h, n, r = shape["B"], shape["H"], shape["N"], shape.get("R", 0)
    moved = 16 * b * h * n + (24 + 16 * r) * h * n + 8 * b * h + 4 * h
    return Cost(moved, (14 + 8 * r) * b * h * n + 3 * b * h)


BENCH = Bench(
    entry="ops.ssm_step",
    shapes={
        "quick": grid(B=(1, 16), H=256, N=32) + grid(B=(1, 16), H=256, N=32, R=1),
        "full": grid(B=64, H=1024, N=32) + grid(B=64, H=1024, N=32, R=1),
        "cuda": grid(B=(1, 64, 512), H=1024, N=32) + grid(B=(1, 64, 512), H=1024, N=32, R=1),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 x 3 x 5 states read and written; a, b, c; u and y; d
        Counted(
            {"B": 2, "H": 3, "N": 5}, FORWARD, Cost(16 * 30 + 3 * 8 * 15 + 2 * 4 * 6 + 4 * 3, 14 * 30 + 3 * 6)
        ),
        Counted(
            {"B": 2, "H": 3, "N": 5, "R": 1},
            FORWARD,
            Cost(16 * 30 + 5 * 8 * 15 + 2 * 4 * 6 + 4 * 3, 22 * 30 + 3 * 6),
        ),
    ),
    gate=1.05,
    peers=(
        Peer("torch naive", naive),
        Peer("torch.compile", compiled.run, compiled.of(naive), unavailable=unless_on_cpu, quick=False),
        Peer("torch dense", dense, dense_matrix, serves=has_a_rank),
    ),
    targets=(
        Target(7, "ssm_step B=64 H=1024 N=32, bytes over copy bandwidth", SHAPE, "copy", 0.6),
        Target(7, "ssm_step B=512 on a GPU, bytes over copy bandwidth", LARGE, "copy", 0.6, device="cuda"),
        Target(
            7,
            "ssm_step B=512 rank 1 on a GPU, bytes over copy bandwidth",
            f"{LARGE}-R1",
            "copy",
            0.6,
            device="cuda",
        ),
    ),
)
