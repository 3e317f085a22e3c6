"""The chunked state-space convolution and its adjoint by the CUDA kernels (csrc/ssm_conv/cuda_*.cu)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from .cpu import as_read


def _device(u: Tensor) -> tuple[int, int]:
    """What the kernels may compute products with (csrc/ssm_conv/cuda.cpp), and a block's shared memory in bytes."""
    properties = torch.cuda.get_device_properties(u.device)
    tensor_cores = 2 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 1
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return (tensor_cores if properties.major >= 8 else 0), shared_bytes


@implement("ssm_conv", "cuda")
def ssm_conv(u: Tensor, *parameters: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssm_conv_cuda(u, *as_read(*parameters), *_device(u))


@implement("ssm_conv_backward", "cuda")
def ssm_conv_backward(
    g: Tensor, g_final: Tensor, u: Tensor, *parameters: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssm_conv_backward_cuda(
        g, g_final.contiguous(), u, *as_read(*parameters), *_device(u)
    )
