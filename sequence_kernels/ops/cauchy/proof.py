"""What proves the Cauchy kernels on a GPU: ragged tiles, one set of weights and several, sums in segments."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(dtype)
    for sets, pairs, length, order in ((1, 1, 1, 1), (1, 33, 130, 1), (2, 5, 70, 2), (5, 17, 129, 5)):
        v, w, g = draw.complex(sets, 3, pairs), draw.inside(3, pairs), draw.complex(sets, 3, length)
        z = torch.complex(draw.real(3, length).abs() + 0.5, draw.real(3, length))
        for conjugate in (True, False):
            name = f"{sets} sets, N={pairs}, L={length}, order={order}, {'pairs' if conjugate else 'plain'}"
            yield Case(name, "cauchy", (v, z, w, conjugate, order))
            yield Case(f"transpose, {name}", "cauchy_transpose", (g, z, w, conjugate, order))
    z = torch.complex(draw.real(1, 4097).abs() + 0.5, draw.real(1, 4097))
    g, w = draw.complex(2, 1, 4097), draw.inside(1, 3)
    yield Case("transpose in segments", "cauchy_transpose", (g, z, w, False, 1))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """S4's four products."""
    for heads, pairs, length in ((16, 32, 257), (256, 32, 2049)):

        def make(kept: int, heads: int = heads, pairs: int = pairs, length: int = length) -> tuple[Any, ...]:
            draw = Draw(dtype)
            z = torch.complex(torch.zeros(heads, length, dtype=dtype), draw.real(heads, length))
            return draw.complex(4, heads, kept), z, draw.inside(heads, pairs), True, 1

        shape = f"4 sets, H={heads}, N={pairs}, L={length}"
        yield Workload(shape, "cauchy", 4 * heads * pairs, partial(make, pairs))
        yield Workload(shape, "cauchy_transpose", 4 * heads * length, partial(make, length))
