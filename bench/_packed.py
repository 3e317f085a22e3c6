"""Packed sequences of random lengths, and the dense batch of as many elements that they are held against."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.harness.declare import Cost, Inputs, Shape

DENSE, PADDED, ROW = "a dense batch", "padded rows", 512


def lengths_of(length: int, mean: int) -> list[int]:
    """Uniform on 16 .. 2 mean - 16, the last of which fills the length."""
    chosen, lengths = random.Random(0), [0]
    while sum(lengths) < length:
        lengths.append(min(chosen.randint(16, 2 * mean - 16), length - sum(lengths)))
    return lengths[1:]


def packed(inputs: Callable[[Shape, torch.device], Inputs]) -> Callable[[Shape, torch.device], Inputs]:
    """The inputs of one row, and where sequences begin and end in it, M elements each on average."""

    def made(shape: Shape, device: torch.device) -> Inputs:
        bounds = torch.tensor([0, *lengths_of(shape["L"], shape["M"])], device=device).cumsum(0)
        return {**inputs({"B": 1, **shape}, device), "cu_seqlens": bounds}

    return made


def dense(run: Callable[[Inputs], Any], sequences: Sequence[str]) -> Callable[[Inputs], Any]:
    """Rows of 512 of the named inputs: other sequences, so that the answer is another."""

    def rows(x: Inputs) -> Any:
        cut = {k: v.unflatten(1, (-1, ROW)).squeeze(0) if k in sequences else v for k, v in x.items()}
        del cut["cu_seqlens"]
        return run(cut)

    return rows


def cost_of_rows(cost: Callable[[Shape, str], Cost]) -> Callable[[Shape, str], Cost]:
    """That of such a dense batch."""
    return lambda shape, mode: cost({**shape, "B": shape["L"] // ROW, "L": ROW}, mode)
