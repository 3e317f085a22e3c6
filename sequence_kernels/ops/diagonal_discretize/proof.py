"""What proves the kernels of the discretisation on a GPU: heads with parameters of their own, and heads that share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload
from .reference import diagonal_discretize

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for copies, pairs, heads in ((5, 33, 5), (1, 5, 40), (2, 300, 4)):
        a, b = draw.inside(copies, pairs), draw.complex(copies, pairs)
        steps = draw.real(heads, dtype=torch.float64).abs()
        for bilinear in (False, True):
            for wide in (True,) if dtype == torch.float64 else (True, False):
                call = (a, b, steps, bilinear, wide)
                name = f"{heads} heads, {copies} copies, N={pairs}, {'bilinear' if bilinear else 'zoh'}"
                name += f", to {'double' if wide else 'single'}"
                yield Case(name, "diagonal_discretize", call)
                yield Case(
                    f"backward, {name}", "diagonal_discretize_backward", (*diagonal_discretize(*call), *call)
                )


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of heads with parameters of their own, for chunk matrices."""
    for heads, pairs in ((64, 32), (512, 32)):

        def make(heads: int = heads, pairs: int = pairs) -> tuple[Any, ...]:
            draw = Draw(dtype)
            steps = draw.real(heads, dtype=torch.float64).abs()
            return draw.inside(heads, pairs), draw.complex(heads, pairs), steps, False, True

        yield Workload(f"H={heads}, N={pairs}", "diagonal_discretize", heads * pairs, make)
