"""The discretisation of a diagonal-plus-low-rank model: (1, N) poles and (H) steps to the parameters of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import poles
from bench.harness.declare import FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """One set of poles that all heads share, as S4 has it, with steps from 1e-3 to 1e-1."""
    p, b = (
        torch.randn(*k, shape["N"], dtype=torch.complex64, device=device) for k in ((shape["R"], 1), (1,))
    )
    dt = torch.logspace(-3, -1, shape["H"], dtype=torch.float64, device=device)
    return {"w": poles(1, shape["N"], device) * 1000, "p": p, "b": b, "dt": dt}


def ours(x: Inputs) -> tuple[Tensor, ...]:
    return ops.dplr_discretize(x["w"], x["p"], x["b"], x["dt"])


def dense(x: Inputs) -> tuple[Tensor, ...]:
    """The same parameters out of the whole matrix: solved for once a head, as s4's own code does."""
    w, p, b = (torch.cat((t, t.conj()), -1).to(torch.complex128) for t in (x["w"], x["p"], x["b"]))
    n, half = x["w"].shape[-1], (x["dt"] / 2).view(-1, 1, 1)
    matrix = torch.diag_embed(w) - torch.einsum("rhm,rhn->hmn", p, p.conj())
    eye = torch.eye(2 * n, dtype=w.dtype, device=w.device)
    g = 1 / (1 - half.squeeze(-1) * w)
    q = g * p.conj()
    columns = 2 * half * torch.cat((b.mT, -p.squeeze(1).mT), -1)
    solved = torch.linalg.solve(eye - half * matrix, columns)[:, :n].to(torch.complex64)
    a_minus_one = (2 * half.squeeze(-1) * w * g)[:, :n].to(torch.complex64)
    return a_minus_one, solved[..., 1:].permute(2, 0, 1), q[..., :n].to(torch.complex64), solved[..., 0]


def cost(shape: Shape, mode: str) -> Cost:
    """A pole, head and term: g p, its products with all terms and with b, and the sums of K (8 each a term and more).

    Besides a reciprocal a pole, and 30 operations for a - 1 and b'. Bytes: inputs and outputs once.
    """
    h, n, r = shape["H"], shape["N"], shape["R"]
    return Cost(
        8 * (2 * h * n + 2 * r * h * n + 2 * n + r * n) + 8 * h,
        h * n * (30 + r * (22 + 12 * r)),
        reciprocals=h * n,
    )


BENCH = Bench(
    entry="ops.dplr_discretize",
    shapes={
        "quick": grid(H=(16, 256), N=32, R=1),
        "full": grid(H=(256, 1024), N=32, R=(1, 2)),
        "cuda": grid(H=1024, N=32, R=1),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 poles of 1 head, 1 term: w, b and p read, a - 1, b', p' and q written, dt of 8 bytes; 22 + 12 and 30 a pole
        Counted({"H": 1, "N": 2, "R": 1}, FORWARD, Cost(8 * (3 * 2 + 4 * 2) + 8, 2 * (30 + 22 + 12), 2)),
    ),
    peers=(Peer("torch dense", dense, quick=False),),
)
