"""Sequences that lie one behind the other in one row: where each begins, and their chunks.

``cu_seqlens`` are the Q + 1 places where Q sequences begin and end, from 0 to the number of elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .. import internals
from . import checks


def check_cu_seqlens(cu_seqlens: Tensor, length: int) -> None:
    """Integers ``(Q + 1,)`` that ascend from 0 to the length; values are looked at as in ``checks.integers``."""
    checks.dtype("cu_seqlens", cu_seqlens, (torch.int32, torch.int64))
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens must have shape (sequences + 1,), got {tuple(cu_seqlens.shape)}")
    if torch.compiler.is_compiling() or internals.is_wrapped(cu_seqlens) or cu_seqlens.device.type != "cpu":
        return
    check_bounds(cu_seqlens, length)


def sequences(cu_seqlens: Tensor | None, name: str, rows: Tensor, length: int) -> int:
    """How many sequences ``rows`` (B, ...) of that length have: B of them, or those packed in a single row."""
    if cu_seqlens is None:
        return rows.shape[0]
    checks.tensors(**{name: rows, "cu_seqlens": cu_seqlens})
    if rows.shape[0] != 1:
        raise ValueError(
            f"{name} must be one row of all sequences with cu_seqlens, B=1, got {tuple(rows.shape)}"
        )
    check_cu_seqlens(cu_seqlens, length)
    return cu_seqlens.shape[0] - 1


def check_bounds(cu_seqlens: Tensor, length: int) -> None:
    """Raise ValueError unless the values ascend from 0 to the length."""
    if bool(ascend(cu_seqlens, length)):
        return
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != length:
        got = f"{int(cu_seqlens[0])} .. {int(cu_seqlens[-1])}"
        raise ValueError(f"cu_seqlens must go from 0 to the number of elements, {length}, got {got}")
    fault = int((cu_seqlens.diff() < 0).nonzero()[0])
    pair = f"{int(cu_seqlens[fault])} before {int(cu_seqlens[fault + 1])}"
    raise ValueError(f"cu_seqlens must ascend, got {pair} at {fault}")


def ascend(cu_seqlens: Tensor, length: int) -> Tensor:
    """Whether the values are as they must be: a boolean on their device."""
    return (cu_seqlens[0] == 0) & (cu_seqlens[-1] == length) & (cu_seqlens.diff() >= 0).all()


def as_bounds(cu_seqlens: Tensor) -> Tensor:
    """As the C++ kernels read them."""
    return cu_seqlens.to(torch.int64).contiguous()


def parts_of(cu_seqlens: Tensor) -> Iterator[tuple[int, int]]:
    """The beginning and the end of each sequence."""
    return pairwise(cu_seqlens.tolist())


def unpacked(x: Tensor, bounds: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Rows ``(sequences, longest, ...)`` of packed sequences, zeros behind each, and their lengths."""
    lengths = bounds.diff()
    place = torch.arange(int(lengths.max()), device=x.device)
    real = place < lengths.unsqueeze(-1)
    elements = x.movedim(axis, 1).squeeze(0)
    padded = torch.cat((elements, elements.new_zeros(1, *elements.shape[1:])))
    rows = padded[torch.where(real, bounds[:-1].unsqueeze(-1) + place, len(elements))]
    return rows.movedim(1, axis), lengths


def packed(rows: Tensor, lengths: Tensor, axis: int) -> Tensor:
    """The inverse of ``unpacked``: the first elements of each row, so many, one behind the other in one row."""
    rows = rows.movedim(axis, 1)
    place = torch.arange(rows.shape[1], device=rows.device)
    real = rows[place < lengths.unsqueeze(-1)]
    return real.unsqueeze(0).movedim(1, axis)


class Chunks(NamedTuple):
    """The chunks of packed sequences: ones of T elements, and behind those of each sequence one of fewer, or of none.

    There are M = L // T + Q at most, a number that the shapes tell; those that are too many have no elements. Of bounds
    that are wrong it makes indices that are in range.
    """

    sequence: Tensor  # (M,): whose they are
    place: Tensor  # (M,): how many chunks of that sequence come before
    left: Tensor  # (M,): and how many behind; negative for those that are too many
    token: Tensor  # (M, T): the element that each place takes; L where there is none
    home: Tensor  # (L,): the place, of M T, that takes each element
    first: Tensor  # (Q,): the first chunk of each sequence
    last: Tensor  # (Q,)
    rest: Tensor  # (Q,): elements of the last one

    @staticmethod
    def of(cu_seqlens: Tensor, length: int, chunk: int) -> Chunks:
        bounds = cu_seqlens.to(torch.int64)
        sizes = bounds.diff()
        counts = torch.div(sizes, chunk, rounding_mode="floor") + 1
        ends = counts.cumsum(0)
        first = ends - counts
        number = torch.arange(length // chunk + len(sizes), device=bounds.device)
        sequence = torch.searchsorted(ends, number, right=True).clamp(max=len(sizes) - 1)
        place = number - first[sequence]
        offset = place.unsqueeze(-1) * chunk + torch.arange(chunk, device=bounds.device)
        token = torch.where(
            offset < sizes[sequence].unsqueeze(-1), bounds[sequence].unsqueeze(-1) + offset, length
        ).clamp(0, length)
        element = torch.arange(length, device=bounds.device)
        owner = torch.searchsorted(bounds[1:], element, right=True).clamp(max=len(sizes) - 1)
        within = element - bounds[owner]
        home = (first[owner] * chunk + within).clamp(
            0, max(token.numel() - 1, 0)
        )  # its chunks are side by side
        return Chunks(
            sequence, place, counts[sequence] - 1 - place, token, home, first, ends - 1, sizes % chunk
        )
