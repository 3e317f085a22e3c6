"""The steps as written, in complex128: what every kernel is held against, and the tensors to do it with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
TOLERANCE = {torch.complex64: 2e-5, torch.complex128: 1e-13}  # of the largest value


class Step(NamedTuple):
    state: Tensor  # (slots, H, N)
    state_indices: Tensor | None  # (rows)
    u: Tensor  # (rows, H)
    a_minus_one: Tensor  # (H, N)
    b: Tensor
    c: Tensor  # (C, H, N)
    d: Tensor | None  # (C, H)
    p: Tensor | None  # (R, H, N)
    q: Tensor | None


def sample(
    rows: int,
    heads: int,
    pairs: int,
    channels: int = 1,
    rank: int | None = None,
    *,
    state_indices: list[int] | None = None,
    slots: int | None = None,
    skip: bool = True,
    dtype: torch.dtype = torch.complex64,
) -> Step:
    """Random arguments of a step; u is NaN in the rows whose slot does not exist."""
    torch.manual_seed(rows + 10 * heads + 100 * pairs + channels)
    slots = rows if slots is None else slots

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    p, q = (None, None) if rank is None else (normal(rank, heads, pairs), normal(rank, heads, pairs))
    u = torch.randn(rows, heads, dtype=REAL[dtype])
    for row, slot in enumerate(state_indices or ()):
        if not 0 <= slot < slots:
            u[row] = float("nan")
    return Step(
        normal(slots, heads, pairs),
        None if state_indices is None else torch.tensor(state_indices),
        u,
        normal(heads, pairs),
        normal(heads, pairs),
        normal(channels, heads, pairs),
        torch.randn(channels, heads, dtype=REAL[dtype]) if skip else None,
        p,
        q,
    )


def step(x: Step) -> tuple[Tensor, Tensor]:
    """y (rows, C, H) in float64, and all states after it in complex128."""
    state, u, a_minus_one, b, c = (t.to(torch.complex128) for t in (x.state, x.u, x.a_minus_one, x.b, x.c))
    state_indices = list(range(len(u))) if x.state_indices is None else x.state_indices.tolist()
    y = torch.zeros(len(u), *x.c.shape[:2], dtype=torch.float64)
    after = state.clone()
    for row, slot in enumerate(state_indices):
        if not 0 <= slot < len(state):
            y[row] = 0 if slot == -1 else float("nan")
            continue
        old, drive = state[slot], u[row].unsqueeze(-1)
        new = (1 + a_minus_one) * old + b * drive
        if x.p is not None and x.q is not None:
            pulls = 2 * (x.q.to(state.dtype) * old).sum(-1, keepdim=True).real
            new = new + (x.p.to(state.dtype) * pulls).sum(0)
        after[slot] = new
        y[row] = 2 * (c * new).sum(-1).real
        if x.d is not None:
            y[row] += x.d.double() * x.u[row].double()
    return y, after


def check(x: Step, y: Tensor, after: Tensor) -> None:
    """y and the states are right, and the states that no row names have the bits that they had."""
    want, want_after = step(x)
    for got, expected in ((y, want), (after, want_after)):
        finite = expected[~expected.isnan()]
        bound = TOLERANCE[x.state.dtype] * max(float(finite.abs().max()) if finite.numel() else 0.0, 1.0)
        torch.testing.assert_close(got.to(expected.dtype), expected, rtol=0, atol=bound, equal_nan=True)
    if x.state_indices is not None:
        idle = [slot for slot in range(len(after)) if slot not in x.state_indices.tolist()]
        assert torch.equal(torch.view_as_real(after[idle]), torch.view_as_real(x.state[idle]))


def nearly_still(rows: int, rank: int | None) -> Step:
    """Every part of a state is 1, and two or three parts of 1.5 / 2^24 move it: together, but none alone, a digit."""
    pairs, part = 19, 1.5 / (2 if rank is None else 3) / 2**24
    both, none = complex(1, 1), None
    p = q = none
    if rank is not None:
        p, q = torch.full((1, 2, pairs), part * both), torch.full((1, 2, pairs), complex(0.5 / pairs))
    shape = (2, pairs)
    return Step(
        torch.full((rows, *shape), both),
        None,
        torch.ones(rows, 2),
        torch.full(shape, complex(part)),
        torch.full(shape, part * both),
        torch.ones(1, *shape, dtype=torch.complex64),
        None,
        p,
        q,
    )


def rounded_up(after: Tensor) -> None:
    """The states after ``nearly_still``: one digit above 1. A added in parts, or rounded itself, leaves them at 1."""
    assert torch.equal(torch.view_as_real(after), torch.full((*after.shape, 2), 1 + 2.0**-23))
