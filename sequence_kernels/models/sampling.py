"""The next token from scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments.values import checked


@checked
def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw tokens ``(...)`` from scores ``(..., vocabulary)``; at temperature 0 the best ones.

    Args:
        top_k: only the so many best are drawn from.
        top_p: only the fewest best whose probabilities reach this sum, at least one (Holtzman et al., 2020).
        generator: where random numbers come from; None is torch's own.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if temperature == 0 or top_k == 1:
        return logits.argmax(-1)
    ranked, tokens = (logits.float() / temperature).sort(-1, descending=True)
    if top_k is not None:
        ranked, tokens = ranked[..., :top_k], tokens[..., :top_k]
    probabilities = ranked.softmax(-1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    drawn = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator)
    return tokens.gather(-1, drawn.view(*logits.shape[:-1], 1)).squeeze(-1)
