"""The convolution of packed sequences and its adjoint by the C++ kernels (csrc/ssm_conv), which read one batch row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from ..ssm_conv.cpu import as_read, in_time_order


@implement("ssm_conv_packed", "cpu")
def ssm_conv_packed(u: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    y, final = torch.ops.sequence_kernels_native.ssm_conv_packed.default(
        u.unsqueeze(0), *as_read(*parameters)
    )
    return y.squeeze(0), final


@implement("ssm_conv_packed_backward", "cpu")
def ssm_conv_packed_backward(
    g: Tensor, g_final: Tensor, u: Tensor, *parameters: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, *gradients = torch.ops.sequence_kernels_native.ssm_conv_packed_backward.default(
        in_time_order(g).unsqueeze(0),
        g_final.contiguous(),
        in_time_order(u).unsqueeze(0),
        *as_read(*parameters),
    )
    return du.squeeze(0), *gradients
