"""The short causal convolution of packed sequences and its adjoint by the C++ kernels (csrc/causal_conv1d)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..causal_conv1d.cpu import as_read, rows_of
from ..dispatch import implement
from ..packing import as_bounds


@implement("causal_conv1d_packed", "cpu")
def causal_conv1d_packed(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, bounds: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    native = torch.ops.sequence_kernels_native.causal_conv1d_packed.default
    y, final_state = native(as_bounds(bounds), rows_of(x), *as_read(weight, bias, initial_state, silu), True)
    return y, final_state.to(x.dtype)


@implement("causal_conv1d_packed_backward", "cpu")
def causal_conv1d_packed_backward(
    g: Tensor, g_final: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias, before, bounds, silu = rest
    native = torch.ops.sequence_kernels_native.causal_conv1d_packed_backward.default
    after, parameters = g_final.to(weight.dtype).contiguous(), as_read(weight, bias, before, silu)
    dx, dw, db, d_initial = native(as_bounds(bounds), rows_of(g), after, rows_of(x), *parameters, True)
    return dx, dw, db, d_initial if before is None else d_initial.to(before.dtype)
