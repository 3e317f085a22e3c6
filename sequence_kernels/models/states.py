"""States of several sequences as one of a batch, and back: for searches, whose hypotheses come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def merge_states(states: Sequence[Any]) -> Any:
    """One state of a batch from the states of its sequences: a new first dimension in every tensor of the tree.

    Lists, tuples and dicts may hold tensors and None. Raises ValueError if there are no states.
    """
    if not states:
        raise ValueError("states must hold at least one state, got none")
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    if isinstance(first, (list, tuple)):
        return type(first)(merge_states(parts) for parts in zip(*states, strict=True))
    if isinstance(first, dict):
        return {key: merge_states([state[key] for state in states]) for key in first}
    return first


def select_state(state: Any, index: int | Tensor) -> Any:
    """The state of one sequence of a batch; with a tensor of indices, of a batch of such, repeats allowed. A copy."""
    if isinstance(state, Tensor):
        return state[index] if isinstance(index, Tensor) else state[index].clone()
    if isinstance(state, (list, tuple)):
        return type(state)(select_state(part, index) for part in state)
    if isinstance(state, dict):
        return {key: select_state(part, index) for key, part in state.items()}
    return state


def split_states(state: Any, count: int) -> list[Any]:
    """The inverse of ``merge_states`` for a batch of so many sequences."""
    return [select_state(state, i) for i in range(count)]
