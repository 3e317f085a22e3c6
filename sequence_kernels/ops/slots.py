"""States that are written where they lie: all of them, or the slots of some streams in a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_place(
    step: Callable[..., tuple[Tensor, Tensor]],
    state: Tensor,
    rows: Sequence[Tensor | None],
    state_indices: Tensor | None,
) -> Tensor:
    """``y, new_state = step(state, *rows)``: write the new states where the old ones were, and return y.

    ``state_indices`` (B): the slot of each row, -1 for none. No shape depends on a value, so that a CUDA graph can
    capture it. An idle row does what the first busy one does, and writes the same bits to the same slot; where all are
    idle, slot 0 gets its own bits.
    """
    if state_indices is None:
        y, new_state = step(state, *rows)
        state.copy_(new_state)
        return y
    busy, count = state_indices >= 0, len(state_indices)
    if count == 0 or len(state) == 0:
        nothing = (None if t is None else torch.zeros_like(t) for t in rows)
        return step(state.new_zeros((count, *state.shape[1:])), *nothing)[0]
    row = torch.where(busy, torch.arange(count, device=busy.device), busy.to(torch.int8).argmax())
    slot = state_indices[row].clamp(min=0)
    old = state[slot]
    y, new_state = step(old, *(None if t is None else t[row] for t in rows))
    state[slot] = torch.where(_along(busy[row], new_state), new_state, old)
    return y.masked_fill_(~_along(busy, y), 0)


def _along(rows: Tensor, t: Tensor) -> Tensor:
    return rows.view(-1, *(1,) * (t.dim() - 1))
