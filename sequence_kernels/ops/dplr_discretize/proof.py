"""What proves the kernels of the discretisation on a GPU: heads with parameters of their own, and heads that share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload
from .reference import dplr_discretize

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for copies, rank, pairs, heads in ((5, 1, 33, 5), (1, 2, 5, 40), (2, 3, 4, 4)):
        parameters = (
            draw.inside(copies, pairs),
            0.3 * draw.complex(rank, copies, pairs),
            draw.complex(copies, pairs),
        )
        steps = 0.1 + draw.real(heads, dtype=torch.float64).abs()
        for wide in (True,) if dtype == torch.float64 else (True, False):
            call = (*parameters, steps, wide)
            name = (
                f"{heads} heads, {copies} copies, rank {rank}, N={pairs}, to {'double' if wide else 'single'}"
            )
            yield Case(name, "dplr_discretize", call)
            yield Case(f"backward, {name}", "dplr_discretize_backward", (*dplr_discretize(*call), *call))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of heads with parameters of their own, for chunk matrices."""
    for heads, pairs in ((64, 32), (512, 32)):

        def make(heads: int = heads, pairs: int = pairs) -> tuple[Any, ...]:
            draw = Draw(dtype)
            w, p, b = (
                draw.inside(heads, pairs),
                0.3 * draw.complex(1, heads, pairs),
                draw.complex(heads, pairs),
            )
            return w, p, b, 0.1 + draw.real(heads, dtype=torch.float64).abs(), True

        yield Workload(f"H={heads}, N={pairs}", "dplr_discretize", heads * pairs, make)
