"""The gated norm and its adjoint by Triton kernels, for CUDA and HIP (interpreted in tests on the CPU).

Forwards a program has one group of a row, backwards one group of some rows; the README has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from ..triton_exponentials import logistic
from . import reference

#: The largest group that a program holds without spilling; larger ones are left to plain torch.
MOST_CHANNELS = {torch.float32: 8192, torch.float64: 1024}
#: Programs that fill a GPU: with more rows than these, each of the backward pass has several.
ENOUGH = 1024


@triton.jit
def _reciprocal_root(x):
    return 1 / (
        tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)
    )  # the latter flushes small numbers of float32


@triton.jit
def gated_rms_norm_kernel(
    x, weight, z, y, groups, size, x_row, z_row, GATE_FIRST: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """x, z (rows, groups, size), weight (groups, size) -> y like x; z may be None."""
    real: tl.constexpr = weight.dtype.element_ty
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    i = tl.arange(0, BLOCK)
    here, at = i < size, group * size + i
    v = tl.load(x + row * x_row + at, mask=here, other=0.0).to(real)
    factor = tl.load(weight + at, mask=here, other=0.0)
    if z is not None:
        gate = tl.load(z + row * z_row + at, mask=here, other=0.0).to(real)
        gate = gate * logistic(gate)
        if GATE_FIRST:
            v = v * gate
        else:
            factor = factor * gate
    r = _reciprocal_root(tl.sum(v * v, 0) / size + EPS)
    tl.store(y + row * groups * size + at, (v * r * factor).to(y.dtype.element_ty), mask=here)


@triton.jit
def gated_rms_norm_backward_kernel(
    g, x, weight, z, dx, dz, parts, rows, groups, size, each, g_row, x_row, z_row,
    GATE_FIRST: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """g like x -> dx, dz like x, and parts (programs, groups, size) of the weight's gradient, of ``each`` rows."""
    real: tl.constexpr = weight.dtype.element_ty
    part, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    i = tl.arange(0, BLOCK)
    at = group * size + i
    w = tl.load(weight + at, mask=i < size, other=0.0)
    dw = tl.zeros((BLOCK,), real)
    for k in range(each):
        row = tl.zeros((1,), tl.int64) + part * each + k
        here = (i < size) & (row < rows)
        wide = tl.load(x + row * x_row + at, mask=here, other=0.0).to(real)
        h = tl.load(g + row * g_row + at, mask=here, other=0.0).to(real)
        v, arriving = wide, h
        if z is not None:
            gate = tl.load(z + row * z_row + at, mask=here, other=0.0).to(real)
            sigma = logistic(gate)
            slope = sigma * (1 + gate * (1 - sigma))
            gate = gate * sigma
            if GATE_FIRST:
                v = wide * gate
            else:
                arriving = h * gate
        r = _reciprocal_root(tl.sum(v * v, 0) / size + EPS)
        t = w * arriving
        dv = r * t - v * (r * r * r * (tl.sum(t * v, 0) / size))
        dw += arriving * v * r
        to = row * groups * size + at
        if z is None:
            tl.store(dx + to, dv.to(dx.dtype.element_ty), mask=here)
        else:
            if GATE_FIRST:
                tl.store(dx + to, (dv * gate).to(dx.dtype.element_ty), mask=here)
                tl.store(dz + to, (dv * wide * slope).to(dz.dtype.element_ty), mask=here)
            else:
                tl.store(dx + to, dv.to(dx.dtype.element_ty), mask=here)
                tl.store(dz + to, (h * v * r * w * slope).to(dz.dtype.element_ty), mask=here)
    tl.store(parts + part * groups * size + at, dw, mask=i < size)


def _rows(t: Tensor) -> Tensor:
    """Rows at any distance, each (groups, channels) in one piece."""
    return t if t.stride()[1:] == (t.shape[2], 1) else plain(t)


def _block(weight: Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(max(weight.shape[1], 1))
    of_warp = 128 if weight.dtype == torch.float64 else 256  # more spill
    return {"BLOCK": block, "num_warps": max(1, min(16, block // of_warp))}


def gated_rms_norm(x: Tensor, weight: Tensor, z: Tensor | None, gate_first: bool, eps: float) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.gated_rms_norm``."""
    rows, groups, size = x.shape
    if size > MOST_CHANNELS[weight.dtype]:
        return reference.gated_rms_norm(x, weight, z, gate_first, eps)
    x, weight = _rows(x), plain(weight)
    z = None if z is None else _rows(z)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        gated_rms_norm_kernel[(rows * groups,)](
            x, weight, z, y, groups, size, x.stride(0), 0 if z is None else z.stride(0),
            GATE_FIRST=gate_first, EPS=eps, **_block(weight),
        )  # fmt: skip
    return y


def gated_rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, z: Tensor | None, gate_first: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The adjoint."""
    rows, groups, size = x.shape
    if size > MOST_CHANNELS[weight.dtype]:
        return reference.gated_rms_norm_backward(g, x, weight, z, gate_first, eps)
    g, x, weight = _rows(g), _rows(x), plain(weight)
    z = None if z is None else _rows(z)
    each = max(1, min(32, triton.cdiv(rows * groups, ENOUGH)))
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dz = torch.zeros_like(dx) if z is None else torch.empty(x.shape, dtype=z.dtype, device=x.device)
    parts = weight.new_empty((triton.cdiv(rows, each), groups, size))
    if dx.numel():
        gated_rms_norm_backward_kernel[(len(parts) * groups,)](
            g, x, weight, z, dx, dz, parts, rows, groups, size, each,
            g.stride(0), x.stride(0), 0 if z is None else z.stride(0),
            GATE_FIRST=gate_first, EPS=eps, **_block(weight),
        )  # fmt: skip
    return dx, parts.sum(0), dz
