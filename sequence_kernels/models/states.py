"""States of several sequences as one of a batch, and back: for searches, whose hypotheses come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..trees import mapped


def merge_states(states: Sequence[Any]) -> Any:
    """One state of a batch from the states of its sequences: a new first dimension in every tensor of the tree.

    Lists, tuples and dicts may hold tensors and None. Raises ValueError if there are no states.
    """
    if not states:
        raise ValueError("states must hold at least one state, got none")
    return mapped(lambda *parts: torch.stack(parts), *states)


def select_state(state: Any, index: int | Tensor) -> Any:
    """The state of one sequence of a batch; with a tensor of indices, of a batch of such, repeats allowed. A copy."""
    return mapped(lambda part: part[index] if isinstance(index, Tensor) else part[index].clone(), state)


def split_states(state: Any, count: int) -> list[Any]:
    """The inverse of ``merge_states`` for a batch of so many sequences."""
    return [select_state(state, i) for i in range(count)]
