"""State-space duality over packed sequences and its adjoint by the C++ kernels (csrc/ssd)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..packing import as_bounds
from ..ssd.cpu import as_read, rows_of


@implement("ssd_packed", "cpu")
def ssd_packed(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, bounds = arguments
    return torch.ops.sequence_kernels_native.ssd_packed.default(as_bounds(bounds), *as_read(*tensors))


@implement("ssd_packed_backward", "cpu")
def ssd_packed_backward(
    g: Tensor, g_final: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    *tensors, bounds = arguments
    native = torch.ops.sequence_kernels_native.ssd_packed_backward.default
    return native(as_bounds(bounds), rows_of(g), g_final.contiguous(), *as_read(*tensors))
