"""S4's generating function by the CUDA kernels (csrc/dplr_generating/cuda.cu).

They take every node, also an infinite one, and every pole as it is: nothing is prepared, and the device is not waited
for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


@implement("dplr_generating", "cuda")
def dplr_generating(*tensors: Tensor) -> Tensor:
    return torch.ops.sequence_kernels_native.dplr_generating_cuda(*[t.contiguous() for t in tensors])


@implement("dplr_generating_backward", "cuda")
def dplr_generating_backward(*tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.sequence_kernels_native.dplr_generating_backward_cuda(*[t.contiguous() for t in tensors])
