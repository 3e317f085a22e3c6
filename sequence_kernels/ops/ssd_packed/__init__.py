"""State-space duality over packed sequences, each with a state of its own: ``ops.ssd`` with ``cu_seqlens``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import find_implementations
from ..registration import register_with_adjoint

find_implementations(__name__, "ssd_packed", "ssd_packed_backward")


def _fake(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    heads, width = x.shape[2:]
    return x.new_empty(x.shape), a.new_empty((rest[3].shape[0] - 1, heads, width, b.shape[-1]))


ssd_packed, _ = register_with_adjoint(
    "ssd_packed",
    "x: BLHP, dt: BLH, a: H, b: BLKN, c: BLKN, d?: HP, initial_state?: QHPN, cu_seqlens: S int",
    "y: BLHP, final_state: QHPN",
    fake=_fake,
    missing="a",
    follows_autocast=(0, 3, 4),
)
