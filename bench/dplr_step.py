"""One time step of a diagonal-plus-low-rank SSM in O(N), against the same in plain torch and with a dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import diagonal
from bench.harness.declare import Bench, Cost, Inputs, Peer, Shape, Target, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    b, h, n, r = shape["B"], shape["H"], shape["N"], shape["R"]
    system = diagonal(h, n, device)
    return {
        "state": torch.randn(b, h, n, dtype=torch.complex64, device=device),
        "u": torch.randn(b, h, device=device),
        "a": system.a,
        "p": torch.randn(r, h, n, dtype=torch.complex64, device=device) / n,
        "q": torch.randn(r, h, n, dtype=torch.complex64, device=device) / n,
        "b": system.b,
        "c": system.c,
        "d": torch.randn(1, h, device=device),
    }


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.dplr_step(**x)


def naive(x: Inputs) -> tuple[Tensor, Tensor]:
    pulled = 2 * torch.einsum("rhn,bhn->rbh", x["q"], x["state"]).real
    low_rank = torch.einsum("rbh,rhn->bhn", pulled.to(x["p"].dtype), x["p"])
    state = x["a"] * x["state"] + low_rank + x["b"] * x["u"].unsqueeze(-1)
    y = 2 * torch.einsum("chn,bhn->bch", x["c"], state).real
    return y + x["d"] * x["u"].unsqueeze(1), state


def dense_matrix(x: Inputs) -> Inputs:
    """The state over all N conjugate pairs as one complex (2 N, 2 N) matrix a head."""
    full = lambda t: torch.cat([t, t.conj()], -1)  # noqa: E731
    low_rank = torch.einsum("rhn,rhm->hnm", full(x["p"]), full(x["q"]))
    return {
        **x,
        "matrix": torch.diag_embed(full(x["a"])) + low_rank,
        "full": {name: full(x[name]) for name in ("state", "b", "c")},
    }


def dense(x: Inputs) -> tuple[Tensor, Tensor]:
    f = x["full"]
    state = torch.einsum("hnm,bhm->bhn", x["matrix"], f["state"]) + f["b"] * x["u"].unsqueeze(-1)
    y = torch.einsum("chn,bhn->bch", f["c"], state).real
    return y + x["d"] * x["u"].unsqueeze(1), state[..., : x["a"].shape[-1]]


def cost(shape: Shape, mode: str) -> Cost:
    """`ssm_step`'s, and for each rank the real part of a product (4) and a complex-real multiply-add (4) a state."""
    b, h, n, r = shape["B"], shape["H"], shape["N"], shape["R"]
    moved = 16 * b * h * n + (24 + 16 * r) * h * n + 8 * b * h + 4 * h
    return Cost(moved, (14 + 8 * r) * b * h * n + 3 * b * h)


BENCH = Bench(
    entry="ops.dplr_step",
    shapes={
        "quick": grid(B=(1, 16), H=256, N=32, R=1),
        "full": grid(B=64, H=1024, N=32, R=1),
        "cuda": grid(B=(1, 64, 512), H=1024, N=32, R=1),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    gate=1.2,
    peers=(Peer("torch naive", naive), Peer("torch dense", dense, dense_matrix)),
    targets=(
        Target(
            7,
            "dplr_step B=512 on a GPU, bytes over copy bandwidth",
            "B512-H1024-N32-R1",
            "copy",
            0.6,
            device="cuda",
        ),
    ),
)
