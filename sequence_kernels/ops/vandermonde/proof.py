"""What proves the Vandermonde kernels on a GPU: ragged tiles, several sets of weights, sums in segments."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...proofs.case import Case, Draw

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
