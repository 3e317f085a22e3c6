"""The selective scan: a diagonal recurrence whose step, input and readout change from element to element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks, packing
from ..dispatch import choose, find_implementations
from ..padding import inside
from ..registration import register_with_adjoint
from ..selective_scan_packed import selective_scan_packed
from .reference import CHUNK

find_implementations(__name__, "selective_scan", "selective_scan_backward")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    delta_limit: tuple[float, float] | None = None,
    initial_state: Tensor | None = None,
    channels_last: bool = False,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``h_t = exp(dt_t a) h_{t-1} + dt_t b_t u_t``, ``y_t = sum_n c_t h_t + d u_t`` over sequences (S6, Mamba).

    ``dt = clamp(softplus(delta + delta_bias), *delta_limit)``. A complex ``a`` stands for conjugate pairs: then
    ``y_t = 2 Re(sum_n c_t h_t) + d u_t``. With ``z`` the output is ``y silu(z)``. (Gu and Dao, "Mamba", 2023, eq. 2:
    ``a`` by zero-order hold, ``b`` by an Euler step.)

    Args:
        u: input ``(B, D, L)``, any L >= 0, at any strides; float16, bfloat16, float32 or float64.
        delta: time steps, of the shape of ``u``. Like ``z``, ``b`` and ``c`` of any of these dtypes; float64 if and
            only if ``u`` is.
        a: ``(D, N)``, float32 or complex64; float64 or complex128 if ``u`` is float64. So all that follow but ``z``.
        b, c: ``(B, N, L)``, or ``(B, G, N, L)`` for G groups of D / G neighbouring channels, or constant ``(D, N)``.
            With a complex ``a`` complex too, else real and of half precision if so wanted.
        d: skip ``(D,)``.
        z: gate, of the shape of ``u``.
        delta_bias: ``(D,)``.
        delta_softplus: apply softplus, which is the identity above 20, as torch's.
        delta_limit: least and largest dt; the gradient beyond them is zero.
        initial_state: ``(B, D, N)`` in the dtype of ``a``; zero if None.
        channels_last: sequences are ``(B, L, D)``, and ``b`` and ``c`` are ``(B, L, N)`` or ``(B, L, G, N)``. Either is
            read where it lies; results lie in memory with the channels last.
        cu_seqlens: ``(Q + 1,)`` integers, ascending from 0 to L: B is 1, and there Q sequences begin and end, none of
            which reaches another. States are then ``(Q, D, N)``. A GPU takes the sequences as rows, padded.
        backend: None chooses the fastest that can serve the call.

    Returns:
        the output, of the shape and dtype of ``u``, and the state after the last element, ``(B, D, N)`` in the dtype
        of ``a``.

    Differentiable in every tensor, also through the final state; second derivatives recompute the first in plain torch.
    """
    given = {"u": u, "delta": delta, "a": a, "b": b, "c": c}
    optional = {"d": d, "z": z, "delta_bias": delta_bias, "initial_state": initial_state}
    given |= {name: value for name, value in optional.items() if value is not None}
    checks.tensors(**given)
    checks.dtype("u", u, (*checks.HALF, *checks.REAL))
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    free = (real,) if real == torch.float64 else (*checks.HALF, real)
    checks.dtype("a", a, (real, checks.COMPLEX_OF[real]))
    for name in ("delta", "z"):
        if name in given:
            checks.dtype(name, given[name], free)
    for name in ("b", "c"):
        checks.dtype(name, given[name], (*free, a.dtype) if a.is_complex() else free)
    for name in ("d", "delta_bias"):
        if name in given:
            checks.dtype(name, given[name], (real,))

    checks.shape("a", a, (("D", None), ("N", None)))
    channels, size = a.shape
    axes = ("L", "D") if channels_last else ("D", "L")
    checks.shape("u", u, (("B", None), *((axis, channels if axis == "D" else None) for axis in axes)))
    batch, length = u.shape[0], u.shape[1 if channels_last else 2]
    sequences = packing.sequences(cu_seqlens, "u", u, length)
    for name in ("delta", "z"):
        if name in given:
            checks.shape(name, given[name], (("B", batch), *zip(axes, u.shape[1:], strict=True)))
    for name in ("d", "delta_bias"):
        if name in given:
            checks.shape(name, given[name], (("D", channels),))
    if initial_state is not None:
        checks.shape("initial_state", initial_state, (("B", sequences), ("D", channels), ("N", size)))
        checks.dtype("initial_state", initial_state, (a.dtype,))
    steps = (delta, z) if channels_last else (delta.mT, None if z is None else z.mT)
    rows = batch, sequences
    b, c = (_in_groups(name, given[name], rows, (length, channels, size), channels_last) for name in "bc")
    if a.is_complex():
        b, c = b.to(a.dtype), c.to(a.dtype)
    tensors = (u if channels_last else u.mT, steps[0], a, b, c, d, steps[1], delta_bias, initial_state)
    numbers = (delta_softplus, *limits(delta_limit))
    if cu_seqlens is None:
        y, final_state, _ = _selective_scan(*tensors, *numbers, choose("selective_scan", backend, u))
    elif u.device.type == "cpu":
        served = choose("selective_scan_packed", backend, u)
        y, final_state, _ = selective_scan_packed(*tensors, cu_seqlens, *numbers, served)
    else:
        y, final_state = _as_rows(cu_seqlens, *tensors, *numbers, backend)
    return y if channels_last else y.mT, final_state


def _as_rows(
    cu_seqlens: Tensor,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    least: float,
    most: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Packed sequences as rows, as long as the longest: no time passes behind each."""
    bounds = cu_seqlens.to(torch.int64)
    steps = delta.to(a.real.dtype) if bias is None else delta + bias
    steps = (F.softplus(steps) if softplus else steps).clamp(least, most)
    u, lengths = packing.unpacked(u, bounds, 1)
    steps, _ = packing.unpacked(steps, bounds, 1)
    z = None if z is None else packing.unpacked(z, bounds, 1)[0]
    b, c = (m if m.shape[:2] == (len(u), 1) else packing.unpacked(m, bounds, 1)[0] for m in (b, c))
    steps = torch.where(inside(lengths, u.shape[1]).unsqueeze(-1), steps, 0)
    tensors = (u, steps, a, b, c, d, z, None, initial_state)
    y, final_state, _ = _selective_scan(
        *tensors, False, -math.inf, math.inf, choose("selective_scan", backend, u)
    )
    return packing.packed(y, lengths, 1), final_state


def limits(limit: Any) -> tuple[float, float]:
    """``delta_limit`` as two numbers."""
    if limit is None:
        return -math.inf, math.inf
    if not isinstance(limit, (tuple, list)) or len(limit) != 2:
        raise TypeError(f"delta_limit must be a pair of numbers or None, got {limit!r}")
    least, most = (float(value) for value in limit)
    if not least <= most:
        raise ValueError(f"delta_limit must be a pair in ascending order, got {limit!r}")
    return least, most


def _in_groups(
    name: str, value: Tensor, rows: tuple[int, int], sizes: tuple[int, int, int], channels_last: bool
) -> Tensor:
    """b or c as (B, L, G, N); one that is constant as one of a single element and D groups, for each sequence."""
    (batch, sequences), (length, channels, size) = rows, sizes
    if value.dim() == 2:
        checks.shape(name, value, (("D", channels), ("N", size)))
        return value.expand(sequences, 1, channels, size)
    groups = (("G", None),) if value.dim() == 4 else ()
    times, entries = ("L", length), ("N", size)
    shape = (times, *groups, entries) if channels_last else (*groups, entries, times)
    checks.shape(name, value, (("B", batch), *shape))
    value = value if channels_last else value.movedim(-1, 1)
    if not groups:
        return value.unsqueeze(2)
    count = value.shape[2]
    if (channels % count if count else channels) != 0:
        raise ValueError(f"the groups G of {name} must divide the channels D={channels}, got G={count}")
    return value


def _fake(u: Tensor, delta: Tensor, a: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    numbers = (2 if a.is_complex() else 1) * a.shape[1]
    kept = (
        (length + CHUNK - 1) // CHUNK * numbers
    )  # one dimension: a size that may be 1 is a guard of a graph
    return (
        u.new_empty(u.shape),
        a.new_empty((batch, *a.shape)),
        a.new_empty((batch, kept, channels), dtype=a.real.dtype),
    )


_selective_scan, _ = register_with_adjoint(
    "selective_scan",
    "u: BLH, delta: BLH, a: HN, b: BLHN, c: BLHN, d?: H, z?: BLH, delta_bias?: H, initial_state?: BHN, "
    "softplus: bool, least: float, most: float",
    "y: BLH, final_state: BHN",
    keeps="states: BTH",
    fake=_fake,
    missing="u",
    follows_autocast=(0, 1, 3, 4, 6),
)
