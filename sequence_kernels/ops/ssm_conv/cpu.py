"""The chunked state-space convolution and its adjoint by the C++ kernels (csrc/ssm_conv)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement


def as_read(
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """As the kernels take them; sequences and e_out they read at any strides."""
    return (
        taps.contiguous(),
        e_out,
        e_in.contiguous(),
        a_powers.contiguous(),
        None if d is None else d.contiguous(),
        None if initial_state is None else initial_state.contiguous(),
        None if lengths is None else lengths.to(torch.int64).contiguous(),
    )


def in_time_order(sequence: Tensor) -> Tensor:
    """For the backward pass, which reads u twice: where elements lie apart, and heads too, one copy is faster."""
    return sequence.contiguous() if sequence.stride(-1) > 1 and sequence.stride(-2) != 1 else sequence


@implement("ssm_conv", "cpu")
def ssm_conv(u: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssm_conv.default(u, *as_read(*parameters))


@implement("ssm_conv_backward", "cpu")
def ssm_conv_backward(
    g: Tensor, g_final: Tensor, u: Tensor, *parameters: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssm_conv_backward.default(
        in_time_order(g), g_final.contiguous(), in_time_order(u), *as_read(*parameters)
    )
