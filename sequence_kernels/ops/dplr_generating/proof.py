"""What proves the kernels of S4's generating function on a GPU: each rank and number of channels that has its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for channels, rank, pairs, length in ((1, 1, 33, 130), (2, 1, 5, 70), (1, 2, 17, 65), (3, 3, 4, 129)):
        c, p, q = (0.3 * draw.complex(k, 3, pairs) for k in (channels, rank, rank))
        nodes = torch.cat((draw.real(length - 1), torch.tensor([torch.inf], dtype=dtype)))
        system = (c, p, q, draw.complex(3, pairs), draw.inside(3, pairs) - 0.5, nodes)
        g = draw.complex(channels, 3, length)
        g[..., -1] = 0  # there is no slope at the infinite node
        name = f"{channels} channels, rank {rank}, N={pairs}, L={length}"
        yield Case(name, "dplr_generating", system)
        yield Case(f"backward, {name}", "dplr_generating_backward", (g, *system))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    for heads, pairs, length in ((64, 32, 513), (256, 32, 2049), (512, 32, 8193)):

        def make(heads: int = heads, pairs: int = pairs, length: int = length) -> tuple[Any, ...]:
            draw = Draw(dtype)
            c, p, q = (0.3 * draw.complex(1, heads, pairs) for _ in "cpq")
            return c, p, q, draw.complex(heads, pairs), draw.inside(heads, pairs) - 0.5, draw.real(length)

        yield Workload(f"H={heads}, N={pairs}, L={length}", "dplr_generating", heads * pairs, make)
