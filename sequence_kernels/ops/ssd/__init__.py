"""State-space duality: Mamba-2's recurrence, one decay a head and a matrix as the state, by chunked products."""

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
from ..ssd_packed import ssd_packed

find_implementations(__name__, "ssd", "ssd_backward")


def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``S_t = exp(dt_t a) S_{t-1} + dt_t x_t b_t^T``, ``y_t = S_t c_t + d x_t``, times ``silu(z_t)`` if there is a z.

    Args:
        x: input ``(B, L, H, P)``, float16, bfloat16, float32 or float64; any L >= 0. Only the last dimension has to be
            contiguous: a part of a wider projection is read where it lies.
        dt: time steps ``(B, L, H)``, before ``dt_bias``, ``dt_softplus`` and ``dt_limit`` apply, in that order; in the
            dtype of ``x`` or that of parameters: float64 if ``x`` is, else float32.
        a: one real number a head ``(H,)``, negative for a decay; a parameter.
        b, c: ``(B, L, G, N)``, in the dtype of ``x``. G divides H, and head h uses group ``h // (H / G)``.
        d: skip ``(H,)`` or ``(H, P)``, a parameter.
        z: gate ``(B, L, H, P)``, in the dtype of ``x``.
        dt_bias: ``(H,)``, a parameter.
        dt_softplus: whether time steps are ``log(1 + exp(dt + dt_bias))``.
        dt_limit: the least and the greatest time step; others are taken as these, without a gradient.
        initial_state: ``(B, H, P, N)``, a parameter's dtype; zeros if None.
        cu_seqlens: ``(Q + 1,)`` integers, ascending from 0 to L: B is 1, and there Q sequences begin and end, none of
            which reaches another. States are then ``(Q, H, P, N)``. A GPU takes the sequences as rows, padded.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(B, L, H, P)`` in the dtype of ``x``, and the final state ``(B, H, P, N)`` in that of parameters.

    Everything is computed, and states are held, in the dtype of parameters. Differentiable in every tensor, also
    through the final state; second derivatives recompute the first in plain torch.
    """
    optional = {"d": d, "z": z, "dt_bias": dt_bias, "initial_state": initial_state}
    given = {name: value for name, value in optional.items() if value is not None}
    checks.tensors(x=x, dt=dt, a=a, b=b, c=c, **given)
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    checks.shape("x", x, (("B", None), ("L", None), ("H", None), ("P", None)))
    batch, length, heads, width = x.shape
    rows = (("B", batch), ("L", length))
    sequences = packing.sequences(cu_seqlens, "x", x, length)
    checks.dtype("dt", dt, tuple(dict.fromkeys((real, x.dtype))))
    checks.shape("dt", dt, (*rows, ("H", heads)))
    checks.shape("b", b, (*rows, ("G", None), ("N", None)))
    checks.shape("c", c, (*rows, ("G", b.shape[2]), ("N", b.shape[3])))
    groups, states = b.shape[2:]
    if heads % groups if groups else heads:
        raise ValueError(
            f"b must have shape (B, L, G, N) with G a divisor of H={heads}, got {tuple(b.shape)}"
        )
    for name, value in {"b": b, "c": c, "z": z}.items():
        if value is not None:
            checks.dtype(name, value, (x.dtype,))
    checks.shape("a", a, (("H", heads),))
    if d is not None and d.dim() != 1:
        checks.shape("d", d, (("H", heads), ("P", width)))
    elif d is not None:
        checks.shape("d", d, (("H", heads),))
    if z is not None:
        checks.shape("z", z, (*rows, ("H", heads), ("P", width)))
    if dt_bias is not None:
        checks.shape("dt_bias", dt_bias, (("H", heads),))
    if initial_state is not None:
        checks.shape(
            "initial_state", initial_state, (("B", sequences), ("H", heads), ("P", width), ("N", states))
        )
    for name, value in {"a": a, "d": d, "dt_bias": dt_bias, "initial_state": initial_state}.items():
        if value is not None:
            checks.dtype(name, value, (real,))
    steps = _time_steps(dt.to(real), dt_bias, dt_softplus, dt_limit)
    skip = d.unsqueeze(-1).expand(heads, width) if d is not None and d.dim() == 1 else d
    tensors = x, steps, a, b, c, skip, initial_state
    if cu_seqlens is None:
        y, final_state = _ssd(*tensors, choose("ssd", backend, x))
    elif x.device.type == "cpu":
        y, final_state = ssd_packed(*tensors, cu_seqlens, choose("ssd_packed", backend, x))
    else:
        y, final_state = _as_rows(cu_seqlens, *tensors, backend)
    return y if z is None else y * F.silu(z), final_state


def _as_rows(
    cu_seqlens: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Packed sequences as rows, as long as the longest: no time passes behind each."""
    *skip_and_state, backend = rest
    bounds = cu_seqlens.to(torch.int64)
    (x, lengths), *others = (packing.unpacked(t, bounds, 1) for t in (x, dt, b, c))
    dt, b, c = (rows for rows, _ in others)
    dt = torch.where(inside(lengths, x.shape[1]).unsqueeze(-1), dt, 0)
    y, final_state = _ssd(x, dt, a, b, c, *skip_and_state, choose("ssd", backend, x))
    return packing.packed(y, lengths, 1), final_state


def _time_steps(dt: Tensor, bias: Tensor | None, softplus: bool, limit: tuple[float, float] | None) -> Tensor:
    dt = dt if bias is None else dt + bias
    dt = F.softplus(dt) if softplus else dt
    if limit is None:
        return dt
    least, most = limit
    if not least <= most:
        raise ValueError(f"dt_limit must be the least and the greatest time step, got {limit!r}")
    return dt if least == 0 and most == math.inf and softplus else dt.clamp(least, most)


def _fake(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    batch, _, heads, width = x.shape
    return x.new_empty(x.shape), a.new_empty((batch, heads, width, b.shape[-1]))


_ssd, _ = register_with_adjoint(
    "ssd",
    "x: BLHP, dt: BLH, a: H, b: BLKN, c: BLKN, d?: HP, initial_state?: BHPN",
    "y: BLHP, final_state: BHPN",
    fake=_fake,
    missing="a",
    follows_autocast=(0, 3, 4),
)
