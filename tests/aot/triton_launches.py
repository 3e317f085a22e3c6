"""The launches of Triton kernels that are compiled ahead of time: label -> (module, function, arguments).

One for each set of compile-time constants that a launch function can choose; a test demands one for every kernel.
"""

from __future__ import annotations

from typing import Any

import torch

TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")

Launches = dict[str, tuple[str, str, tuple[Any, ...]]]


def _vandermonde(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.vandermonde.triton"
    v, x, g = (torch.zeros(shape, dtype=real.to_complex()) for shape in ((2, 4, 32), (4, 32), (2, 4, 4096)))
    return {
        f"pairs {name}": (module, "vandermonde", (v, x, 4096, True, 1)),
        f"plain {name}": (module, "vandermonde", (v, x, 4096, False, 1)),
        f"real g {name}": (module, "vandermonde_transpose", (g.real.contiguous(), x, 1)),
        f"complex g {name}": (module, "vandermonde_transpose", (g, x, 1)),
    }


def _cauchy(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.cauchy.triton"
    z, w = (torch.zeros(shape, dtype=real.to_complex()) for shape in ((2049,), (4, 32)))
    found: Launches = {}
    for sets in (1, 2, 4):
        v, g = (torch.zeros(sets, 4, size, dtype=real.to_complex()) for size in (32, 2049))
        found[f"{sets} sets, pairs {name}"] = (module, "cauchy", (v, z, w, True, 1))
        found[f"{sets} sets, plain {name}"] = (module, "cauchy", (v, z, w, False, 1))
        found[f"{sets} sets {name}"] = (module, "cauchy_transpose", (g, z, w, 1))
    return found


def _ssm_step(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.ssm_step.triton"
    found: Launches = {}
    for rows in (1, 8):
        state = torch.zeros(rows, 4, 32, dtype=real.to_complex())
        u, d, slots = torch.zeros(rows, 4, dtype=real), torch.zeros(1, 4, dtype=real), torch.arange(rows)
        one = state[:1].clone()
        found[f"{rows} rows {name}"] = (module, "ssm_step", (state, u, one[0], one[0], one, d))
        found[f"{rows} rows, slots {name}"] = (
            module,
            "ssm_step_",
            (state, u, one[0], one, one, one[0], one, None, slots),
        )
    return found


LAUNCHES: Launches = {}
for _name, _real in (("f32", torch.float32), ("f64", torch.float64)):
    LAUNCHES |= _vandermonde(_name, _real) | _cauchy(_name, _real) | _ssm_step(_name, _real)
