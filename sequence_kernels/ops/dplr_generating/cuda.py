"""S4's generating function by the CUDA kernels (csrc/dplr_generating/cuda.cu).

They take every node, also an infinite one, and every pole as it is: nothing is prepared, and the device is not waited
for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


def _plain(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.resolve_conj().contiguous() for tensor in tensors)


@implement("dplr_generating", "cuda")
def dplr_generating(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> Tensor:
    return torch.ops.sequence_kernels_native.dplr_generating_cuda(*_plain(c, p, q, b, w, t))


@implement("dplr_generating_backward", "cuda")
def dplr_generating_backward(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    return torch.ops.sequence_kernels_native.dplr_generating_backward_cuda(*_plain(g, c, p, q, b, w, t))
