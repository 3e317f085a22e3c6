"""All states of a linear recurrence in plain torch, in a number of calls that grows with the logarithm of its steps.

Two steps ``x <- x A + u_0``, ``x <- x A + u_1`` are one of A^2, ``x <- x A^2 + (u_0 A + u_1)``. So the states before
every other step are those of half as many steps, and the others are one step away. In all that is twice the work of the
steps one after the other, and no state is the result of more than two products for each doubling. Powers are made in
the precision of A and only then rounded to that of the states: what a rounding loses of A does not add up over the
steps.

A is diagonal complex ``(H, N)`` or dense real ``(H, S, S)``; states are rows, ``(H, B, N)`` or ``(H, B, S)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def squared(a: Tensor) -> Tensor:
    return a * a if a.is_complex() else a @ a


def advanced(x: Tensor, a: Tensor, added: Tensor) -> Tensor:
    """x A + added, of (H, B, M, S) each, in the precision of ``added``."""
    a = a.to(added.dtype)
    if a.is_complex():
        return torch.addcmul(added, x, a[:, None, None])
    return torch.baddbmm(added.flatten(1, 2), x.flatten(1, 2), a).view(added.shape)


def powers(a: Tensor, count: int) -> Tensor:
    """A^0 .. A^(count - 1) of a diagonal A: (H, count, N)."""
    found, power = torch.ones_like(a).unsqueeze(1), a
    while found.shape[1] < count:
        found = torch.cat((found, found[:, : count - found.shape[1]] * power.unsqueeze(1)), 1)
        power = squared(power)
    return found


def states(inputs: Tensor, a: Tensor, initial: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The states before each step, as the inputs (H, B, M, S), and the one after all, as the initial (H, B, S).

    With ``reverse`` the steps are taken from the last to the first.
    """
    steps = inputs.shape[2]
    if steps == 0:
        return inputs, initial
    if steps == 1:
        one = initial.unsqueeze(2)
        return one, advanced(one, a, inputs).squeeze(2)
    odd = steps % 2
    if odd:  # one step more, which is taken last
        inputs = F.pad(inputs, (0, 0, 1, 0) if reverse else (0, 0, 0, 1))
    halves = inputs.unflatten(2, (-1, 2)).unbind(3)
    first, second = halves[::-1] if reverse else halves
    outer, last = states(advanced(first, a, second), squared(a), initial, reverse=reverse)
    inner = advanced(outer, a, first)
    every = torch.stack((inner, outer) if reverse else (outer, inner), 3).flatten(2, 3)
    if odd:
        return (every[:, :, 1:], every[:, :, 0]) if reverse else (every[:, :, :-1], every[:, :, -1])
    return every, last
