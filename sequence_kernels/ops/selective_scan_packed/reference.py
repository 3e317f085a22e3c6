"""The selective scan of packed sequences and its adjoint in plain torch: that of each sequence alone, one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..packing import check_bounds, parts_of
from ..selective_scan import reference
from ..selective_scan.reference import CHUNK

#: The places of arguments with a row for each element; b and c unless they are constant.
_SEQUENCES = (0, 1, 3, 4, 6)


def _alone(tensors: tuple[Any, ...], bounds: Tensor) -> list[list[Any]]:
    """The arguments of each sequence."""
    length, count = tensors[0].shape[1], len(bounds) - 1
    check_bounds(bounds, length)

    def part(i: int, given: Any, q: int, begin: int, end: int) -> Any:
        if given is None or (i not in _SEQUENCES and i != 8):
            return given
        by_sequence = i == 8 or (i in (3, 4) and _constant(given, count))
        return given[q : q + 1] if by_sequence else given[:, begin:end]

    return [
        [part(i, given, q, *at) for i, given in enumerate(tensors)] for q, at in enumerate(parts_of(bounds))
    ]


def _constant(matrix: Tensor, sequences: int) -> bool:
    return matrix.shape[1] == 1 and matrix.shape[0] == sequences


@implement("selective_scan_packed", "torch")
def selective_scan_packed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors, bounds, numbers = arguments[:9], arguments[9], arguments[10:]
    results = [reference.selective_scan(*own, *numbers) for own in _alone(tensors, bounds)]
    a, length = tensors[2], tensors[0].shape[1]
    width = (2 if a.is_complex() else 1) * a.shape[1]
    kept = a.real.new_zeros(1, (length // CHUNK + len(results)) * width, len(a))
    for q, (begin, (_, _, states)) in enumerate(zip(bounds.tolist(), results, strict=False)):
        first = (begin // CHUNK + q) * width
        kept[:, first : first + states.shape[1]] = states
    return torch.cat([y for y, _, _ in results], 1), torch.cat([final for _, final, _ in results]), kept


@implement("selective_scan_packed_backward", "torch")
def selective_scan_packed_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, bounds, numbers = arguments[:9], arguments[9], arguments[11:]
    count = len(bounds) - 1
    gradients = [
        reference.selective_scan_backward(
            g[:, begin:end], g_final[q : q + 1], *own, tensors[0].new_empty(0), *numbers
        )
        for q, (own, (begin, end)) in enumerate(zip(_alone(tensors, bounds), parts_of(bounds), strict=True))
    ]

    def joined(i: int, parts: tuple[Tensor, ...]) -> Tensor:
        if i == 8 or (i in (3, 4) and _constant(tensors[i], count)):
            return torch.cat(parts)
        return torch.cat(parts, 1) if i in _SEQUENCES else torch.stack(parts).sum(0)

    return tuple(joined(i, parts) for i, parts in enumerate(zip(*gradients, strict=True)))
