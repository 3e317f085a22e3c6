"""Beam search over the continuations of a batch of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .states import select_state

#: Maps tokens ``(rows,)`` and the state before them to scores ``(rows, vocabulary)`` and the state after them.
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def beam_search(
    step: Step, scores: Tensor, state: Any, count: int, beams: int, end: int | None = None
) -> tuple[Tensor, Any]:
    """The most probable continuation of each row that is found by keeping the ``beams`` best at every token.

    Args:
        scores: of each row's first new token, ``(batch, vocabulary)``.
        state: after the prompts; its tensors' first dimension is the batch.
        count: most tokens of a continuation.
        end: a token after which there is no other; a continuation that has ended stays among the best as it is.

    Returns:
        tokens ``(batch, up to count)``, filled with ``end``, and the state after all but the last of them.
    """
    batch, words = scores.shape
    sums = scores.new_zeros(batch, 1)
    found = torch.zeros(batch, 1, 0, dtype=torch.int64, device=scores.device)
    ended = torch.zeros(batch, 1, dtype=torch.bool, device=scores.device)
    first = torch.arange(batch, device=scores.device).unsqueeze(1)
    while found.shape[2] < count:
        if found.shape[2]:
            scores, state = step(found[..., -1].flatten(), state)
        kept = sums.shape[1]
        steps = scores.log_softmax(-1).view(batch, kept, words)
        if end is not None:
            stay = torch.full_like(steps[0, 0], -math.inf)
            stay[end] = 0
            steps = torch.where(ended.unsqueeze(-1), stay, steps)
        extended = (sums.unsqueeze(-1) + steps).flatten(1)
        sums, best = extended.topk(min(beams, extended.shape[1]))
        parent, token = best // words, best % words
        state = select_state(state, (first * kept + parent).flatten())
        found = torch.cat(
            (found.gather(1, parent.unsqueeze(-1).expand(-1, -1, found.shape[2])), token.unsqueeze(-1)), 2
        )
        ended = token == end if end is not None else ended.gather(1, parent)
        if end is not None and bool(ended.all()):
            break
    return found[:, 0], select_state(state, (first * sums.shape[1]).flatten())
