"""State-space duality over packed sequences and its adjoint in plain torch: each sequence alone, one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..packing import check_bounds, parts_of
from ..ssd import reference

#: The places of arguments with a row for each element, and that of the states.
_SEQUENCES, _STATES = (0, 1, 3, 4), 6


def _alone(tensors: tuple[Any, ...], bounds: Tensor) -> list[list[Any]]:
    """The arguments of each sequence."""
    check_bounds(bounds, tensors[0].shape[1])
    parts = []
    for q, (begin, end) in enumerate(parts_of(bounds)):
        own = [t[:, begin:end] if i in _SEQUENCES else t for i, t in enumerate(tensors)]
        states = tensors[_STATES]
        own[_STATES] = None if states is None else states[q : q + 1]
        parts.append(own)
    return parts


@implement("ssd_packed", "torch")
def ssd_packed(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, bounds = arguments
    results = [reference.ssd(*own) for own in _alone(tuple(tensors), bounds)]
    return torch.cat([y for y, _ in results], 1), torch.cat([final for _, final in results])


@implement("ssd_packed_backward", "torch")
def ssd_packed_backward(
    g: Tensor, g_final: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *tensors, bounds = arguments
    alone = _alone(tuple(tensors), bounds)
    dx, d_dt, da, db, dc, dd, d_initial = zip(
        *(
            reference.ssd_backward(g[:, begin:end], g_final[q : q + 1], *own)
            for q, (own, (begin, end)) in enumerate(zip(alone, parts_of(bounds), strict=True))
        ),
        strict=True,
    )
    return (
        torch.cat(dx, 1),
        torch.cat(d_dt, 1),
        torch.stack(da).sum(0),
        torch.cat(db, 1),
        torch.cat(dc, 1),
        torch.stack(dd).sum(0),
        torch.cat(d_initial),
    )
