"""What proves the kernels of the gated norm on a GPU: groups, both places of the gate and none, half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64", "bfloat16", "float16")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for rows, groups, size, gate in ((1100, 1, 33, "first"), (3, 2, 600, "last"), (5, 3, 7, None)):
        draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32, seed=size)
        g, x, z = (draw.real(rows, groups, size, dtype=dtype) for _ in "gxz")
        call = (x, draw.real(groups, size), None if gate is None else z, gate == "first", 1e-5)
        name = f"R={rows}, C={groups} x {size}, gate {gate}"
        yield Case(name, "gated_rms_norm", call)
        yield Case(f"backward, {name}", "gated_rms_norm_backward", (g, *call))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of Mamba-2."""
    for rows in (1, 256, 8192):
        shape, make = f"R={rows}, C=1536", partial(_layer, rows, dtype)
        yield Workload(shape, "gated_rms_norm", rows * 1536, make)


def _layer(rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32)
    x, z = (draw.real(rows, 1, 1536, dtype=dtype) for _ in "xz")
    return x, draw.real(1, 1536), z, True, 1e-5
