"""What proves the kernels of chunk matrices on a GPU: diagonal and of low rank, powers of one tile and of several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload
from .reference import ssm_chunk

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw, wide = Draw(dtype), Draw(torch.float64)
    sizes = ((1, 1, 33, 16, False), (2, 0, 5, 8, True), (1, 2, 3, 32, True), (1, 5, 4, 8, True))
    for channels, rank, pairs, chunk, tail in sizes:
        a, b = 0.9 * torch.exp(wide.inside(3, pairs)), wide.complex(3, pairs)
        p, q = (0.3 * pairs**-0.5 * wide.complex(rank, 3, pairs) for _ in "pq")
        call = (a, p, q, b, draw.complex(channels, 3, pairs), chunk, tail)
        name = (
            f"{channels} channels, rank {rank}, N={pairs}, T={chunk}, {'all powers' if tail else 'one power'}"
        )
        yield Case(name, "ssm_chunk", call)
        yield Case(f"backward, {name}", "ssm_chunk_backward", (*ssm_chunk(*call), *call))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of S4D and of S4."""
    for heads, pairs, rank in ((64, 32, 0), (64, 32, 1), (512, 32, 0), (512, 32, 1)):

        def make(heads: int = heads, pairs: int = pairs, rank: int = rank) -> tuple[Any, ...]:
            wide = Draw(torch.float64)
            p, q = (0.3 * pairs**-0.5 * wide.complex(rank, heads, pairs) for _ in "pq")
            a, b = 0.9 * torch.exp(wide.inside(heads, pairs)), wide.complex(heads, pairs)
            return a, p, q, b, Draw(dtype).complex(1, heads, pairs), 32, False

        yield Workload(f"H={heads}, N={pairs}, rank {rank}, T=32", "ssm_chunk", heads * pairs, make)
