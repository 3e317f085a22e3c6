"""The selective scan of a Mamba layer: the recurrence whose step, input and readout change with the element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from sequence_kernels import ops

SHORT, LONG, LONGER = (f"B1-L{length}-D1536-N16" for length in (512, 2048, 8192))
PIECE, CACHED = 512, 1 << 17


def inputs(shape: Shape, device: torch.device) -> Inputs:
    b, length, d, n = (shape[name] for name in "BLDN")
    sequence = lambda: torch.randn(b, length, d, device=device)  # noqa: E731
    return {
        "u": sequence(),
        "delta": sequence(),
        "a": -torch.arange(1.0, n + 1, device=device).repeat(d, 1),
        "b": torch.randn(b, length, n, device=device),
        "c": torch.randn(b, length, n, device=device),
        "d": torch.ones(d, device=device),
        "z": sequence(),
        "delta_bias": torch.empty(d, device=device).uniform_(-7, -2),
    }


def ours(x: Inputs) -> tuple[Tensor, Tensor]:
    return ops.selective_scan(**x, delta_softplus=True, channels_last=True)


def element_by_element(x: Inputs) -> tuple[Tensor, Tensor]:
    """A Python loop over the elements, all decays and inputs made before."""
    dt = F.softplus(x["delta"] + x["delta_bias"])
    decay = torch.exp(dt.unsqueeze(-1) * x["a"])
    drive = (dt * x["u"]).unsqueeze(-1) * x["b"].unsqueeze(2)
    state, outputs = torch.zeros_like(drive[:, 0]), []
    for t in range(drive.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        outputs.append((state * x["c"][:, t].unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 1) + x["d"] * x["u"]) * F.silu(x["z"]), state


def by_logarithms(x: Inputs) -> tuple[Tensor, Tensor]:
    """All states by a scan in log2(L) steps over the whole, in place of a loop."""
    dt = F.softplus(x["delta"] + x["delta_bias"])
    decay = torch.exp(dt.unsqueeze(-1) * x["a"])
    state = (dt * x["u"]).unsqueeze(-1) * x["b"].unsqueeze(2)
    shift = 1
    while shift < state.shape[1]:
        state = torch.cat((state[:, :shift], state[:, shift:] + decay[:, shift:] * state[:, :-shift]), 1)
        decay = torch.cat((decay[:, :shift], decay[:, shift:] * decay[:, :-shift]), 1)
        shift *= 2
    y = (state * x["c"].unsqueeze(2)).sum(-1) + x["d"] * x["u"]
    return y * F.silu(x["z"]), state[:, -1]


def in_pieces(x: Inputs) -> tuple[Tensor, Tensor]:
    """Ours, 512 elements after the other: what an element costs where the sequence is no longer."""
    sequences, outputs, state = ("u", "delta", "b", "c", "z"), [], None
    for start in range(0, x["u"].shape[1], PIECE):
        piece = {k: v[:, start : start + PIECE] if k in sequences else v for k, v in x.items()}
        y, state = ops.selective_scan(**piece, delta_softplus=True, channels_last=True, initial_state=state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


def is_longer(shape: Shape) -> str | None:
    return None if shape["L"] > PIECE else f"it is one piece of {PIECE} elements"


class _Alone(torch.autograd.Function):
    """Our forward pass, whose derivative costs nothing."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, x: Inputs) -> tuple[Tensor, Tensor]:
        return ours(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, None]:
        return None, None


class _Room(torch.autograd.Function):
    """Memory for the large results and gradients, and for so many numbers more for each of u's."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, z: Tensor, more: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.more = more
        room = torch.ones(int(more * u.numel()))
        return u + room[0]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (u,) = ctx.saved_tensors
        room = torch.ones(int(ctx.more * u.numel()))
        return u + room[0], u + room[0], u + room[0], None


def room(more: float) -> Peer:
    def run(x: Inputs) -> Tensor:
        return _Room.apply(x["u"], x["delta"], x["z"], more)

    return Peer(f"results and {more:g} of u", run, tolerance=math.inf, quick=False)


def exponentials(x: Inputs) -> Tensor:
    """torch's exp of as many numbers as there are entries, from a block that stays in cache."""
    for _ in range(-(-x["u"].numel() * x["a"].shape[1] // CACHED)):
        torch.exp(x["cached"], out=x["result"])
    return x["u"]


def with_block(x: Inputs) -> Inputs:
    return {**x, "cached": -torch.rand(CACHED), "result": torch.empty(CACHED)}


def cost(shape: Shape, mode: str) -> Cost:
    """An entry and element: an exponential, and a product and three multiply-adds (dt a, e h + x b, c h).

    Backward another exponential and 20 operations: the state again (4), its gradient twice (3), those of b, c, dt, u
    and a (13). Softplus and silu of an element: 2 exponentials, a logarithm counted as one more, and 8 operations.
    """
    b, length, d, n = (shape[name] for name in "BLDN")
    elements, states = b * length * d, b * length * d * n
    forward = Cost(
        4 * (4 * elements + 2 * b * length * n + d * n + 2 * d + b * d * n),
        7 * states + 8 * elements,
        0,
        states + 3 * elements,
    )
    if mode == FORWARD:
        return forward
    kept = 4 * (length // 64) * b * d * n
    return forward + Cost(
        kept + 4 * (7 * elements + 4 * b * length * n + 2 * d * n + 4 * d + b * d * n) + kept,
        20 * states + 16 * elements,
        0,
        states + 3 * elements,
    )


BENCH = Bench(
    entry="ops.selective_scan",
    shapes={
        "quick": grid(B=1, L=(512, 2048), D=1536, N=16),
        "full": grid(B=1, L=8192, D=1536, N=16) + grid(B=8, L=2048, D=1536, N=16),
        "cuda": grid(B=8, L=(2048, 8192), D=1536, N=16),
    },
    inputs=inputs,
    run=ours,
    wrt=("u", "delta", "a", "b", "c", "d", "z", "delta_bias"),
    cost=cost,
    counted=(
        # 2 x 5 x 3 elements of u, delta, z and y; b and c; a; d and delta_bias; the state
        Counted(
            {"B": 2, "L": 5, "D": 3, "N": 4},
            FORWARD,
            Cost(4 * (4 * 30 + 2 * 40 + 12 + 6 + 24), 7 * 120 + 8 * 30, 0, 120 + 90),
        ),
    ),
    gate=10,
    peers=(
        Peer("torch loop", element_by_element, quick=False),
        Peer("torch scan", by_logarithms),
        Peer("pieces of 512", in_pieces, serves=is_longer, quick=False),
        Peer("as many exponentials", exponentials, with_block, tolerance=math.inf, quick=False),
        Peer("forward alone", lambda x: _Alone.apply(x["delta_bias"], x), tolerance=math.inf, quick=False),
        room(0.5),
        room(1.5),
    ),
    targets=(
        Target(17, "selective_scan forward L=512, against a loop", SHORT, "torch loop", 100),
        Target(17, "selective_scan forward L=2048, against a loop", LONG, "torch loop", 100),
        Target(17, "selective_scan forward L=512, against a scan by logarithms", SHORT, "torch scan", 100),
        Target(17, "selective_scan forward L=2048, against a scan by logarithms", LONG, "torch scan", 100),
        Target(17, "the same with gradients, L=512", SHORT, "torch scan", 100, BOTH),
        Target(17, "selective_scan forward: 3 exponentials an entry", LONG, "as many exponentials", 0.33),
        Target(17, "an element of 8192 costs what one of 512 does", LONGER, "pieces of 512", 0.9),
        Target(17, "selective_scan, with gradients 3.5 forward passes", LONG, "forward alone", 0.29, BOTH),
        Target(17, "selective_scan forward, memory", LONG, "results and 0.5 of u", 1, quantity="memory"),
        Target(17, "the same with gradients", LONG, "results and 1.5 of u", 1, BOTH, quantity="memory"),
    ),
)
