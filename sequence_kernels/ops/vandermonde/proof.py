"""What proves the Vandermonde kernels on a GPU: ragged tiles, several sets of weights, sums in segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for pairs, length, power in ((1, 1, 0), (5, 70, 0), (33, 129, 1), (3, 300, 5)):
        v, x = draw.complex(2, 3, pairs), draw.inside(3, pairs)
        g = draw.real(2, 3, length)
        for conjugate in (True, False):
            name = f"N={pairs}, L={length}, power={power}, {'pairs' if conjugate else 'plain'}"
            yield Case(name, "vandermonde", (v, x, length, conjugate, power))
        name = f"transpose, N={pairs}, L={length}, power={power}"
        yield Case(f"{name}, real", "vandermonde_transpose", (g, x, power))
        yield Case(f"{name}, complex", "vandermonde_transpose", (draw.complex(2, 3, length), x, power))
    long = draw.real(1, 1, 16385), draw.inside(1, 2)
    yield Case("transpose in segments", "vandermonde_transpose", (*long, 0))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    for heads, pairs, length in ((64, 32, 1024), (256, 32, 4096), (512, 32, 16384)):

        def forward(heads: int = heads, pairs: int = pairs, length: int = length) -> tuple[Any, ...]:
            draw = Draw(dtype)
            return draw.complex(1, heads, pairs), draw.inside(heads, pairs) / 64, length, True, 0

        def transpose(heads: int = heads, pairs: int = pairs, length: int = length) -> tuple[Any, ...]:
            draw = Draw(dtype)
            return draw.real(1, heads, length), draw.inside(heads, pairs) / 64, 0

        shape = f"H={heads}, N={pairs}, L={length}"
        yield Workload(shape, "vandermonde", heads * pairs, forward)
        yield Workload(shape, "vandermonde_transpose", heads * length, transpose)
