"""State-space duality and its adjoint by the CUDA kernels (csrc/ssd)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from .cpu import as_read, rows_of


def _precision(x: Tensor) -> int:
    """What the kernels may compute products with (csrc/ssd/cuda.cpp)."""
    if torch.cuda.get_device_properties(x.device).major < 8:
        return 0
    return 2 if torch.backends.cuda.matmul.fp32_precision == "tf32" else 1


@implement("ssd", "cuda")
def ssd(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.ssd_cuda(*as_read(x, *rest), _precision(x))


@implement("ssd_backward", "cuda")
def ssd_backward(
    g: Tensor, g_final: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    native = torch.ops.sequence_kernels_native.ssd_backward_cuda
    given = rows_of(g), g_final.contiguous(), *as_read(x, *rest)
    dx, d_dt, da, db, dc, dd, d_initial = native(*given, _precision(x))
    return dx, d_dt, da, db.to(x.dtype), dc.to(x.dtype), dd, d_initial
