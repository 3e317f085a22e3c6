"""The short causal convolution of packed sequences: ``ops.causal_conv1d`` with ``cu_seqlens``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import find_implementations
from ..registration import register_with_adjoint

find_implementations(__name__, "causal_conv1d_packed", "causal_conv1d_packed_backward")


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    channels, width = weight.shape
    return x.new_empty(x.shape), x.new_empty((rest[2].shape[0] - 1, channels, width - 1))


causal_conv1d_packed, _ = register_with_adjoint(
    "causal_conv1d_packed",
    "x: BLH, weight: HW, bias?: H, initial_state?: QHS, cu_seqlens: P int, silu: bool",
    "y: BLH, final_state: QHS",
    fake=_fake,
    missing="weight",
    follows_autocast=(0, 3),
)
