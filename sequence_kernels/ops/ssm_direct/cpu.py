"""The convolution by L taps and its adjoint in C++ (csrc/ssm_direct), which reads sequences at any strides."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


@implement("ssm_direct", "cpu")
def ssm_direct(u: Tensor, *parameters: Tensor) -> Tensor:
    return torch.ops.sequence_kernels_native.ssm_direct.default(u, *map(Tensor.contiguous, parameters))


@implement("ssm_direct_backward", "cpu")
def ssm_direct_backward(g: Tensor, u: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.sequence_kernels_native.ssm_direct_backward.default(
        g, u, *map(Tensor.contiguous, parameters)
    )
