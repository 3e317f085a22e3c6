"""The selective steps by the CUDA kernels (csrc/selective_step)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from .kernels import steps


@functools.cache
def _native() -> Callable[..., Tensor]:
    return torch.ops.sequence_kernels_native.selective_step.default


def kernel(state: Tensor, state_indices: Tensor | None, *rest: Any) -> Tensor:
    """The step of ``kernels.Kernel``; the kernel in double reads double alone."""
    u = rest[0]
    if state.dtype == torch.float64:
        rest = tuple(t.double() if isinstance(t, Tensor) and t is not rest[-1] else t for t in rest)
    y = _native()(state, state_indices, *rest)
    return y if y.dtype == u.dtype else y.to(u.dtype)


step, step_ = steps(kernel)
implement("selective_step", "cuda")(step)
implement("selective_step_", "cuda")(step_)
