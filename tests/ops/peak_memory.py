"""Peak memory of the C++ kernels' calls, measured in a process of its own: `python -m tests.ops.peak_memory`.

Prints a JSON object: for each call, forward and with its gradients, by how many bytes the resident set grew at its
peak; of "all pairs", which holds a number for every pole and position, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sequence_kernels import ops

HEADS, POLES, LENGTH = 4, 64, 1 << 16
#: What the larger of a call's input and output takes, and what one number for every pole and position takes.
SEQUENCE_BYTES, ALL_PAIRS_BYTES = 8 * HEADS * LENGTH, 8 * HEADS * POLES * LENGTH


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index(f"{field}:") + 1])


def growth(run: Callable[[], object]) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def calls(heads: int, poles: int, length: int) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Each op and its differentiable arguments."""
    numbers = torch.randn(7, heads, poles, dtype=torch.complex64)
    w = torch.complex(-0.5 - numbers[0].real.abs(), numbers[0].imag)
    t = torch.linspace(0, 30, length)
    z = torch.complex(torch.zeros_like(t), t)
    g = torch.randn(heads, length, dtype=torch.complex64)
    v, c, p, q = numbers[1], numbers[2:3], numbers[3:4], numbers[4:5]
    return {
        "vandermonde": (lambda v, x: ops.vandermonde(v, x, length, backend="cpu"), (v, 1e-4 * w)),
        "vandermonde_transpose": (
            lambda g, x: ops.vandermonde_transpose(g, x, backend="cpu"),
            (g.real.contiguous(), 1e-4 * w),
        ),
        "cauchy": (lambda v, z, w: ops.cauchy(v, z, w, backend="cpu"), (v, z, w)),
        "cauchy_transpose": (lambda g, z, w: ops.cauchy_transpose(g, z, w, backend="cpu"), (g, z, w)),
        "dplr_generating": (
            lambda *tensors: ops.dplr_generating(*tensors, t, backend="cpu"),
            (c, p, q, numbers[5], w, torch.full((heads,), 0.1)),
        ),
        "all pairs": (lambda z, w: (1 / (z.unsqueeze(-1) - w.unsqueeze(-2))).sum(-1), (z, w)),
    }


def with_gradients(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    leaves = [a.detach().requires_grad_() for a in arguments]
    out = function(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def main() -> None:
    for function, arguments in calls(2, 3, 5).values():  # what the first calls load
        with_gradients(function, arguments)
    measured = {}
    for name, (function, arguments) in calls(HEADS, POLES, LENGTH).items():
        measured[name] = growth(lambda f=function, a=arguments: f(*a))
        measured[f"{name} with gradients"] = growth(lambda f=function, a=arguments: with_gradients(f, a))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
