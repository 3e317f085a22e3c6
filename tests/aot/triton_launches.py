"""The launches of Triton kernels that are compiled ahead of time: label -> (module, function, arguments).

One for each set of compile-time constants that a launch function can choose; a test demands one for every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")

_OPS = "sequence_kernels.ops"


def _c(real: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=real.to_complex())


def _launches() -> dict[str, tuple[str, str, Callable[[], tuple[Any, ...]]]]:
    found: dict[str, tuple[str, str, Callable[[], tuple[Any, ...]]]] = {}
    for name, real in (("f32", torch.float32), ("f64", torch.float64)):
        module = f"{_OPS}.vandermonde.triton"
        for pairs in (True, False):
            found[f"{'pairs' if pairs else 'plain'} {name}"] = (
                module, "vandermonde",
                lambda real=real, pairs=pairs: (_c(real, 2, 4, 32), _c(real, 4, 32), 4096, pairs, 1),
            )  # fmt: skip
        found[f"real g {name}"] = (
            module, "vandermonde_transpose",
            lambda real=real: (torch.zeros(2, 4, 4096, dtype=real), _c(real, 4, 32), 1),
        )  # fmt: skip
        found[f"complex g {name}"] = (
            module, "vandermonde_transpose",
            lambda real=real: (_c(real, 2, 4, 4096), _c(real, 4, 32), 1),
        )  # fmt: skip
        module = f"{_OPS}.cauchy.triton"
        for sets in (1, 2, 4):
            for pairs in (True, False):
                found[f"{sets} sets, {'pairs' if pairs else 'plain'} {name}"] = (
                    module, "cauchy",
                    lambda real=real, sets=sets, pairs=pairs: (
                        _c(real, sets, 4, 32), _c(real, 2049), _c(real, 4, 32), pairs, 1,
                    ),
                )  # fmt: skip
            found[f"{sets} sets {name}"] = (
                module, "cauchy_transpose",
                lambda real=real, sets=sets: (_c(real, sets, 4, 2049), _c(real, 2049), _c(real, 4, 32), 1),
            )  # fmt: skip
    return found


LAUNCHES = _launches()
