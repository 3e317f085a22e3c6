"""What proves the kernels of a step on a GPU: few rows and many, diagonal and of low rank, with slots and in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for rows, channels, pairs, rank in ((1, 1, 33, 0), (9, 2, 5, 2), (3, 1, 64, 1)):
        state = draw.complex(rows, 3, pairs)
        parameters = (0.5 * draw.inside(3, pairs), draw.complex(3, pairs), draw.complex(channels, 3, pairs))
        low_rank = [draw.complex(rank, 3, pairs) if rank else None for _ in "pq"]
        step = (*parameters, draw.real(channels, 3), *low_rank)
        u, name = draw.real(rows, 3), f"{rows} rows, {channels} channels, N={pairs}, rank {rank}"
        yield Case(name, "ssm_step", (state, u, *step))
        yield Case(f"in place, {name}", "ssm_step_", (state, u, *step, None))
        slots = torch.cat((draw.complex(3, 3, pairs), state))
        indices = torch.arange(rows).flip(0) + 1
        indices[rows // 2] = -1 if rows > 1 else 2  # an idle row
        yield Case(f"slots, {name}", "ssm_step_", (slots, u, *step, indices))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of S4D and of S4, from one stream to many."""
    for rows, heads, pairs in ((1, 256, 32), (32, 256, 32), (512, 256, 32)):
        for rank in (0, 1):

            def make(
                rows: int = rows, heads: int = heads, pairs: int = pairs, rank: int = rank
            ) -> tuple[Any, ...]:
                draw = Draw(dtype)
                state, u = draw.complex(rows, heads, pairs), draw.real(rows, heads)
                parameters = 0.5 * draw.inside(heads, pairs), draw.complex(heads, pairs)
                low_rank = [0.1 * draw.complex(rank, heads, pairs) if rank else None for _ in "pq"]
                return state, u, *parameters, draw.complex(1, heads, pairs), draw.real(1, heads), *low_rank

            def in_place(make: Callable[[], tuple[Any, ...]] = make) -> tuple[Any, ...]:
                return *make(), None

            shape, elements = f"B={rows}, H={heads}, N={pairs}, rank {rank}", rows * heads * pairs
            yield Workload(shape, "ssm_step", elements, make)
            yield Workload(shape, "ssm_step_", elements, in_place)
