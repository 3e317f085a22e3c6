"""Krylov sequences by the C++ kernels (csrc/dplr_krylov)."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import native
from ..dispatch import implement


def _plain(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().contiguous()


@implement("dplr_krylov", "cpu", needs=native.needs("cpu"))
def dplr_krylov(x: Tensor, a: Tensor, p: Tensor, q: Tensor, count: int) -> Tensor:
    return torch.ops.sequence_kernels_native.dplr_krylov(*map(_plain, (x, a, p, q)), count)


@implement("dplr_krylov_backward", "cpu", needs=native.needs("cpu"))
def dplr_krylov_backward(
    g: Tensor, y: Tensor, a: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.dplr_krylov_backward(*map(_plain, (g, y, a, p, q)))
