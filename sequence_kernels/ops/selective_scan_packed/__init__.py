"""The selective scan of packed sequences, each with a state of its own: ``ops.selective_scan`` with ``cu_seqlens``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dispatch import find_implementations
from ..registration import register_with_adjoint
from ..selective_scan.reference import CHUNK

find_implementations(__name__, "selective_scan_packed", "selective_scan_packed_backward")


def _fake(u: Tensor, delta: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, length, channels = u.shape
    sequences = rest[6].shape[0] - 1
    numbers = (2 if a.is_complex() else 1) * a.shape[1]
    return (
        u.new_empty(u.shape),
        a.new_empty((sequences, *a.shape)),
        a.new_empty((1, (length // CHUNK + sequences) * numbers, channels), dtype=a.real.dtype),
    )


selective_scan_packed, _ = register_with_adjoint(
    "selective_scan_packed",
    "u: BLH, delta: BLH, a: HN, b: BLHN, c: BLHN, d?: H, z?: BLH, delta_bias?: H, initial_state?: QHN, "
    "cu_seqlens: P int, softplus: bool, least: float, most: float",
    "y: BLH, final_state: QHN",
    keeps="states: BTH",
    fake=_fake,
    missing="u",
    follows_autocast=(0, 1, 3, 4, 6),
)
