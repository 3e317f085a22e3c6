"""What proves the kernels of state-space duality on a GPU: ragged tiles, several chunks, groups, half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64", "bfloat16", "float16", "tf32")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for batch, length, heads, width, groups, size in ((1, 100, 2, 40, 1, 36), (2, 7, 4, 3, 2, 5)):
        draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32, seed=length)
        whole = length == 100
        call = (
            draw.real(batch, length, heads, width, dtype=dtype),
            draw.real(batch, length, heads).abs(),
            -draw.real(heads).abs(),
            draw.real(batch, length, groups, size, dtype=dtype),
            draw.real(batch, length, groups, size, dtype=dtype),
            draw.real(heads, width) if whole else None,
            draw.real(batch, heads, width, size) if whole else None,
        )
        name = f"L={length}, H={heads}, P={width}, N={size}"
        yield Case(name, "ssd", call)
        gradients = (draw.real(*call[0].shape, dtype=dtype), draw.real(batch, heads, width, size))
        yield Case(f"backward, {name}", "ssd_backward", (*gradients, *call))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of Mamba-2."""
    for batch, length, heads in ((1, 256, 8), (4, 1024, 24)):
        shape = f"B={batch}, L={length}, H={heads}, P=64, N=128"
        make = partial(_layer, batch, length, heads, dtype)
        yield Workload(shape, "ssd", batch * length * heads * 64, make)


def _layer(batch: int, length: int, heads: int, dtype: torch.dtype) -> tuple[Any, ...]:
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32)
    x = draw.real(batch, length, heads, 64, dtype=dtype)
    b, c = (draw.real(batch, length, 1, 128, dtype=dtype) for _ in "bc")
    dt, a, d = draw.real(batch, length, heads).abs(), -draw.real(heads).abs(), draw.real(heads, 64)
    return x, dt, a, b, c, d, None
