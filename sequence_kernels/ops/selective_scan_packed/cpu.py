"""The selective scan of packed sequences and its adjoint by the C++ kernels (csrc/selective_scan)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..packing import as_bounds
from ..selective_scan.cpu import as_read, with_absent


@implement("selective_scan_packed", "cpu")
def selective_scan_packed(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors, bounds, numbers = arguments[:9], arguments[9], arguments[10:]
    return torch.ops.sequence_kernels_native.selective_scan_packed.default(
        as_bounds(bounds), *as_read(*tensors, *numbers)
    )


@implement("selective_scan_packed_backward", "cpu")
def selective_scan_packed_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, bounds, states, numbers = arguments[:9], arguments[9], arguments[10], arguments[11:]
    found = torch.ops.sequence_kernels_native.selective_scan_packed_backward.default(
        as_bounds(bounds), g, g_final.contiguous(), *as_read(*tensors, *numbers), states.contiguous()
    )
    *others, d_initial = with_absent(tensors, found)
    return *others, d_initial if tensors[8] is not None else found[8].new_zeros(found[8].shape)
