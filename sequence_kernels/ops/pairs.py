"""Complex numbers that are kept as pairs of real ones."""

from __future__ import annotations

import torch
from torch import Tensor


def as_complex(pairs: Tensor) -> Tensor:
    """Real ``(..., 2)`` as complex ``(...)``, wherever its memory lies: a view if that can be one, else a copy."""
    if not torch.compiler.is_compiling():  # a graph serves tensors that are somewhere else later
        try:
            return torch.view_as_complex(pairs)
        except RuntimeError:  # pairs that begin at an odd place, or are not next to each other
            pass
    return torch.complex(*pairs.unbind(-1))
