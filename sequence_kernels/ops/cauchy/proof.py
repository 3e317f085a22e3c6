"""What proves the Cauchy kernels on a GPU: ragged tiles, one set of weights and several, sums in segments."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...proofs.case import Case, Draw

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
