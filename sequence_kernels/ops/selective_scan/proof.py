"""What proves the kernels of the selective scan on a GPU: segments, groups, states that several lanes share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload
from .reference import selective_scan

PRECISIONS = ("float32", "float64", "bfloat16", "float16")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    half = dtype.itemsize == 2
    for complex_ in (False,) if half else (False, True):
        # Groups of b and of c, as many as there are channels for constant ones.
        for batch, channels, length, size, groups in ((1, 34, 70, 16, (1, 1)), (2, 6, 7, 3, (2, 6))):
            draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32, seed=length)
            matrix = draw.complex if complex_ else draw.real
            sequences = [draw.real(batch, length, channels, dtype=dtype) for _ in range(4)]
            a = draw.inside(channels, size) if complex_ else -draw.real(channels, size).exp()
            b, c = (matrix(batch, length if g < channels else 1, g, size) for g in groups)
            bare = length == 7
            call = (
                sequences[0],
                sequences[1],
                a,
                b,
                c,
                None if bare else draw.real(channels),
                None if bare else sequences[2],
                None if bare else draw.real(channels),
                None if bare else matrix(batch, channels, size),
                not bare,
                0.05 if bare else -math.inf,
                1.0 if bare else math.inf,
            )
            name = f"{'complex' if complex_ else 'real'}, D={channels}, L={length}, N={size}, groups={groups}"
            yield Case(name, "selective_scan", call)
            *_, states = selective_scan(*call)
            gradients = (sequences[3], matrix(batch, channels, size))
            whole = (*gradients, *call[:9], states, *call[9:])
            yield Case(f"backward, {name}", "selective_scan_backward", whole)


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of Mamba."""
    for batch, channels, length in ((1, 256, 256), (4, 1536, 1024)):
        shape = f"B={batch}, D={channels}, L={length}, N=16"
        make = partial(_layer, batch, channels, length, dtype)
        yield Workload(shape, "selective_scan", batch * channels * length, make)


def _layer(batch: int, channels: int, length: int, dtype: torch.dtype) -> tuple[Any, ...]:
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32)
    u, delta, z = (draw.real(batch, length, channels, dtype=dtype) for _ in range(3))
    b, c = (draw.real(batch, length, 1, 16, dtype=dtype) for _ in range(2))
    a, d, bias = -draw.real(channels, 16).exp(), draw.real(channels), draw.real(channels)
    return u, delta, a, b, c, d, z, bias, None, True, -math.inf, math.inf
