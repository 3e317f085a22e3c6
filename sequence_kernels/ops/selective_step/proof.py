"""What proves the kernels of a selective step on a GPU: both forms, ragged tiles, groups, in place and with slots."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for rows, heads, width, size, groups in ((1, 67, 1, 16, 1), (3, 4, 1, 3, 2), (3, 2, 37, 65, 1)):
        draw = Draw(dtype, seed=size)
        whole = size != 3
        call = (
            draw.real(rows, heads, width, size),
            draw.real(rows, heads, width),
            draw.real(rows, heads),
            -draw.real(heads, size if width == 1 else 1).abs(),
            draw.real(rows, groups, size),
            draw.real(rows, groups, size),
            draw.real(heads, width) if whole else None,
            draw.real(rows, heads, width) if whole else None,
            draw.real(heads) if whole else None,
        )
        numbers = (True, -math.inf, math.inf) if whole else (False, 0.05, 1.0)
        name = f"{rows} rows, H={heads}, P={width}, N={size}"
        yield Case(name, "selective_step", (*call, *numbers))
        yield Case(f"in place, {name}", "selective_step_", (*call, None, *numbers))
        pool = torch.cat((draw.real(2, heads, width, size), call[0]))
        indices = torch.arange(rows).flip(0) + 1
        if rows > 1:
            indices[rows // 2] = -1  # an idle row
        yield Case(f"slots, {name}", "selective_step_", (pool, *call[1:], indices, *numbers))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of Mamba and of Mamba-2, from one stream to many."""
    for rows in (1, 64):
        for heads, width, size in ((1536, 1, 16), (24, 64, 128)):
            shape, elements = f"B={rows}, H={heads}, P={width}, N={size}", rows * heads * width * size
            make = partial(_layer, rows, heads, width, size, dtype)
            yield Workload(shape, "selective_step", elements, make)
            yield Workload(shape, "selective_step_", elements, partial(make, None))


def _layer(
    rows: int, heads: int, width: int, size: int, dtype: torch.dtype, *state_indices: None
) -> tuple[Any, ...]:
    draw = Draw(dtype)
    state, u = draw.real(rows, heads, width, size), draw.real(rows, heads, width)
    a, d, bias = -draw.real(heads, size if width == 1 else 1).abs(), draw.real(heads, 1), draw.real(heads)
    b, c = (draw.real(rows, 1, size) for _ in "bc")
    delta, z = draw.real(rows, heads), draw.real(rows, heads, width)
    return state, u, delta, a, b, c, d, z, bias, *state_indices, True, -math.inf, math.inf
