"""The step as written, in float64: what the GPU kernels are held against, and the tensors to do it with."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

F32, F64 = torch.float32, torch.float64
#: By the dtype of u: of the norm.
TOLERANCE = {F32: 2e-6, F64: 1e-13, torch.bfloat16: 2**-7, torch.float16: 2**-10}
#: Rows, heads, channels, entries, groups and whether a head has one decay. Tiles that are filled, ragged and several.
SHAPES = [
    (1, 34, 1, 16, 2, False),
    (3, 3, 5, 21, 1, True),
    (1, 2, 40, 33, 2, True),
    (2, 5, 1, 3, 5, True),
    (2, 3, 1, 0, 1, False),
    (2, 3, 2, 0, 1, True),
    (1, 2, 1, 300, 1, False),
]


class Step(NamedTuple):
    """What a kernel takes before the numbers."""

    state: Tensor  # (slots, H, P, N)
    state_indices: Tensor | None  # (rows)
    u: Tensor  # (rows, H, P)
    delta: Tensor  # (rows, H)
    a: Tensor  # (H, N) or (H, 1)
    b: Tensor  # (rows, G, N)
    c: Tensor
    d: Tensor | None  # (H, P) or (H, 1)
    z: Tensor | None  # (rows, H, P)
    bias: Tensor | None  # (H)


class Numbers(NamedTuple):
    softplus: bool = True
    least: float = 0.05
    most: float = 1.5


PLAIN = Numbers(False, -math.inf, math.inf)


def sample(
    rows: int,
    heads: int,
    width: int,
    size: int,
    groups: int,
    one_decay: bool,
    *,
    state_indices: list[int] | None = None,
    slots: int | None = None,
    bare: bool = False,
    dtype: torch.dtype = F32,
) -> Step:
    """Random arguments, inputs in ``dtype``; those of rows whose slot does not exist are NaN. ``bare``: no option.

    u and delta are parts of wider tensors, as of a projection.
    """
    torch.manual_seed(rows + 10 * heads + 100 * size)
    slots = rows if slots is None else slots
    parameter = F64 if dtype == F64 else F32

    def rows_of(*shape: int) -> Tensor:
        t = torch.randn(rows, *shape, dtype=F64)
        for row, slot in enumerate(state_indices or ()):
            if not 0 <= slot < slots:
                t[row] = math.nan
        return t.to(dtype)

    def real(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64).to(parameter)

    return Step(
        real(slots, heads, width, size),
        None if state_indices is None else torch.tensor(state_indices),
        rows_of(2, heads, width)[:, 1],
        rows_of(2, heads)[:, 1],
        -real(heads, 1 if one_decay else size).exp(),
        rows_of(groups, size),
        rows_of(groups, size),
        None if bare else real(heads, 1 if one_decay and rows != 3 else width),
        None if bare else rows_of(heads, width),
        None if bare else real(heads),
    )


def step(x: Step, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """y and all states after it, in float64."""
    heads = x.u.shape[1]
    after, y = x.state.to(F64, copy=True), torch.zeros(x.u.shape, dtype=F64)
    for row in range(len(y)):
        slot = row if x.state_indices is None else int(x.state_indices[row])
        if not 0 <= slot < len(after):
            y[row] = 0 if slot == -1 else math.nan
            continue
        for h in range(heads):
            dt = x.delta[row, h].double() + (0 if x.bias is None else x.bias[h].double())
            dt = torch.log1p(dt.exp()) if numbers.softplus and not dt > 20 else dt  # as torch's
            dt = dt.clamp(numbers.least, numbers.most)
            group = h // (heads // x.b.shape[1])
            u, b, c = x.u[row, h].double(), x.b[row, group].double(), x.c[row, group].double()
            decay = torch.expm1(dt * x.a[h].double())
            after[slot, h] += decay * after[slot, h] + dt * u.unsqueeze(-1) * b
            y[row, h] = after[slot, h] @ c + (0 if x.d is None else x.d[h].double() * u)
            if x.z is not None:
                z = x.z[row, h].double()
                y[row, h] *= z / (1 + torch.exp(-z))
    return y, after


def check(x: Step, numbers: Numbers, y: Tensor, after: Tensor) -> None:
    """y and the states are right, and the states that no row names have the bits that they had."""
    assert y.dtype == x.u.dtype
    bounds = TOLERANCE[x.u.dtype], TOLERANCE[x.state.dtype]
    for got, want, bound in zip((y, after), step(x, numbers), bounds, strict=True):
        assert got.shape == want.shape
        assert torch.equal(got.isnan(), want.isnan())
        error = (got.double() - want).nan_to_num().norm()
        assert error <= bound * want.nan_to_num().norm()
        worst, largest = (
            (t.nan_to_num().abs().amax() if t.numel() else 0) for t in (got.double() - want, want)
        )
        assert worst <= (bound / 4 if x.u.dtype == F32 else bound) * largest  # one element among many
    if x.state_indices is not None:
        idle = [slot for slot in range(len(after)) if slot not in x.state_indices.tolist()]
        assert torch.equal(after[idle], x.state[idle])


def nearly_still(one_decay: bool) -> Step:
    """States above 1, and steps of some 1e-5."""
    x = sample(4, 9, 1, 16, 1, one_decay, bare=True)
    return x._replace(state=1 + x.state.abs(), delta=x.delta.abs() * 1e-5)


def rounded_once(x: Step, after: Tensor) -> None:
    """Within its own rounding of the exact one: no drift."""
    exact = step(x, PLAIN)[1]
    last_digit = torch.finfo(F32).eps * torch.exp2(exact.log2().floor())
    assert float(((after.double() - exact).abs() / last_digit).max()) < 0.51
