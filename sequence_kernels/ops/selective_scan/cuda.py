"""The selective scan and its adjoint by the CUDA kernels (csrc/selective_scan)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import implement
from . import cpu, reference


def of_gpu(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Any, ...]:
    """b and c in the dtype of a, entries side by side: they are read for every channel, and small beside these."""
    b, c = (m.to(a.dtype) for m in (b, c))
    b, c = (m if m.stride(-1) == 1 else m.contiguous() for m in (b, c))
    return u, delta, a, b, c, *rest


def fits(a: Tensor) -> bool:
    """Whether a warp holds a channel's state: 256 numbers in float32, 128 in float64; complex ones count twice."""
    return a.shape[1] * a.element_size() <= 1024


@implement("selective_scan", "cuda")
def selective_scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    if not fits(arguments[2]):
        return reference.selective_scan(*arguments)
    return cpu.selective_scan(*of_gpu(*arguments))


@implement("selective_scan_backward", "cuda")
def selective_scan_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if not fits(arguments[2]):
        return reference.selective_scan_backward(g, g_final, *arguments)
    results = cpu.selective_scan_backward(g, g_final, *of_gpu(*arguments))
    return tuple(
        r.to(given.dtype) if i in (3, 4) else r
        for i, (r, given) in enumerate(zip(results, arguments, strict=False))
    )
