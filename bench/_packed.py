"""Packed sequences of random lengths, and the dense batch of as many elements that they are held against."""

from __future__ import annotations

import random

DENSE, PADDED, ROW = "a dense batch", "padded rows", 512


def lengths_of(length: int, mean: int) -> list[int]:
    """Uniform on 16 .. 2 mean - 16, the last of which fills the length."""
    chosen, lengths = random.Random(0), [0]
    while sum(lengths) < length:
        lengths.append(min(chosen.randint(16, 2 * mean - 16), length - sum(lengths)))
    return lengths[1:]
