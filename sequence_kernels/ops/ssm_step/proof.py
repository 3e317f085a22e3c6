"""What proves the kernels of a step on a GPU: few rows and many, diagonal and of low rank, with slots and in place."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...proofs.case import Case, Draw

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
