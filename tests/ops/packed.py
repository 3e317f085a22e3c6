"""Packed sequences for the tests of the ops that take them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


#: On, before and behind the edges of chunks of 64, empty, of one element.
LENGTHS = {
    "edges": [64, 0, 63, 65, 1, 128, 0],
    "one": [70],
    "single": [1],
    "nothing": [0, 0],
    "tiny": [1] * 12,
}

#: Bounds of 9 elements that are none, and what is said of them.
BAD_BOUNDS = [
    ([0, 5, 4, 9], "must ascend, got 5"),
    ([0, 12, 9], "must ascend, got 12|must be in 0 .. 9"),
    ([1, 9], "0"),
    ([0, 8], "9, got"),
    ([0, 10], "9, got"),
    ([0, -3, 9], "must ascend, got 0"),
]


def close(got: Iterable[Tensor], want: Iterable[Tensor], tolerance: float = 1e-11) -> None:
    """Within the tolerance of the norm."""
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert float((a - b).detach().norm()) <= tolerance * float(b.detach().norm())
