"""State-space duality, Mamba-2's recurrence: x (B, L, H, 64), states of 128 a channel, one group."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from sequence_kernels import ops

SHAPE = "B1-L2048-H24-P64-N128"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    batch, length, heads, width, states = (shape[k] for k in "BLHPN")
    return {
        "x": torch.randn(batch, length, heads, width, device=device),
        "dt": 0.1 * torch.rand(batch, length, heads, device=device),
        "a": -1 - 15 * torch.rand(heads, device=device),
        "b": torch.randn(batch, length, 1, states, device=device),
        "c": torch.randn(batch, length, 1, states, device=device),
        "d": torch.ones(heads, device=device),
    }


def ours(x: Inputs) -> Tensor:
    return ops.ssd(**x)[0]


def by_chunks(chunk: int) -> tuple[str, object]:
    """The recurrence as Mamba-2's paper lists it: einsums over chunks, and over the chunks' states."""

    def sums(x: Tensor) -> Tensor:
        """Of x from after s up to and with t, (.., t, s); -inf where t < s."""
        size = x.shape[-1]
        columns = x.unsqueeze(-1).expand(*x.shape, size)
        after = torch.ones(size, size, dtype=torch.bool, device=x.device)
        columns = columns.masked_fill(~after.tril(-1), 0).cumsum(-2)
        return columns.masked_fill(~after.tril(), -torch.inf)

    def run(x: Inputs) -> Tensor:
        values = (x["x"] * x["dt"].unsqueeze(-1)).unflatten(1, (-1, chunk))
        decays = (x["dt"] * x["a"]).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2)
        heads = values.shape[3]
        b, c = (x[k].unflatten(1, (-1, chunk)).expand(-1, -1, -1, heads, -1) for k in "bc")
        total = decays.cumsum(-1)
        inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, sums(decays).exp(), values)
        left = (total[..., -1:] - total).exp()
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, left, values)
        states = torch.cat((torch.zeros_like(states[:, :1]), states), 1)
        across = sums(torch.nn.functional.pad(total[..., -1], (1, 0))).exp()
        states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
        read = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, total.exp())
        return (inside + read).flatten(1, 2) + x["d"].unsqueeze(-1) * x["x"]

    return f"torch by chunks of {chunk}", run


def cost(shape: Shape, mode: str) -> Cost:
    """Each state times its decay and an input more, and into the output: two multiply-adds a number of a state.

    Backward the states once more, and two each for the gradients of what was read, and of what was added.
    """
    batch, length, heads, width, states = (shape[k] for k in "BLHPN")
    rows = batch * length
    moved = 4 * (rows * (heads * (2 * width + 1) + 2 * states) + 2 * heads)
    flops, exponentials = 4 * rows * heads * width * states, rows * heads
    forward = Cost(moved, flops, 0, exponentials)
    back = Cost(moved + moved // 2, 5 * flops // 2, 0, exponentials)
    return forward + back if mode == BOTH else forward


_SIZES = {"H": 24, "P": 64, "N": 128}
BENCH = Bench(
    entry="ops.ssd",
    shapes={
        "quick": grid(B=1, L=256, H=4, P=64, N=64),
        "full": grid(B=1, L=(512, 2048), **_SIZES),
        "cuda": grid(B=8, L=2048, **_SIZES),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 2 x 3 rows: 5 heads with 7 x, 7 y and a dt, 11 of b and of c; 5 of a and of d; 2 x 2 x 3 x 5 x 7 x 11 products
        Counted(
            {"B": 2, "L": 3, "H": 5, "P": 7, "N": 11},
            FORWARD,
            Cost(4 * (6 * (5 * 15 + 22) + 10), 4 * 6 * 5 * 77, 0, 30),
        ),
    ),
    wrt=("x", "dt", "a", "b", "c", "d"),
    gate=1.5,
    peers=tuple(Peer(*by_chunks(chunk)) for chunk in (64, 256)),
    targets=(
        Target(17, "ssd of 24 heads x 64, state 128, L=2048, forward", SHAPE, "torch by chunks of 64", 8),
        Target(17, "ssd of 24 heads x 64, state 128, L=2048, forward", SHAPE, "torch by chunks of 256", 25),
        Target(17, "ssd: 2 N P multiply-adds a token and head, over sgemm's rate", SHAPE, "sgemm", 0.67),
    ),
)
