"""State-space duality and its adjoint by the C++ kernels (csrc/ssd)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement


def rows_of(t: Tensor) -> Tensor:
    """As the kernels read sequences: at any strides but of the last dimension."""
    return t if t.stride(-1) == 1 else t.contiguous()


def as_read(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, initial_state: Tensor | None
) -> tuple[Any, ...]:
    d, initial_state = (None if t is None else t.contiguous() for t in (d, initial_state))
    return rows_of(x), dt.contiguous(), a.contiguous(), rows_of(b), rows_of(c), d, initial_state


@implement("ssd", "cpu")
def ssd(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssd.default(*as_read(*arguments))


@implement("ssd_backward", "cpu")
def ssd_backward(
    g: Tensor, g_final: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    native = torch.ops.sequence_kernels_native.ssd_backward.default
    return native(rows_of(g), g_final.contiguous(), *as_read(*arguments))
