"""The gated norm and its adjoint by the C++ kernels (csrc/gated_rms_norm)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement


def _rows(t: Tensor | None) -> Tensor | None:
    """As the kernels read them: rows at any distance, each (groups, channels) in one piece."""
    return t if t is None or t.stride()[1:] == (t.shape[2], 1) else t.contiguous()


@implement("gated_rms_norm", "cpu")
def gated_rms_norm(x: Tensor, weight: Tensor, z: Tensor | None, *numbers: Any) -> Tensor:
    native = torch.ops.sequence_kernels_native.gated_rms_norm.default
    return native(_rows(x), weight.contiguous(), _rows(z), *numbers)


@implement("gated_rms_norm_backward", "cpu")
def gated_rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, z: Tensor | None, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    native = torch.ops.sequence_kernels_native.gated_rms_norm_backward.default
    dx, dw, dz = native(_rows(g), _rows(x), weight.contiguous(), _rows(z), *numbers)
    return dx, dw, torch.zeros_like(dx) if z is None else dz
