"""Which elements of a batch of sequences are real, and which are padding."""

from __future__ import annotations

import torch
from torch import Tensor


def inside(lengths: Tensor, length: int) -> Tensor:
    """Booleans ``(..., length)``: the elements before each of the ``lengths`` ``(...)``."""
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(-1)
