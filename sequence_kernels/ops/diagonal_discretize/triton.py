"""The discretisation and its adjoint by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests).

A program has a head, and all pairs of its states, in double. The README has the formulas.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dplr_discretize.reference import of_copies
from ..triton_complex import load, multiply, reals, store

_TWO_OVER_PI = tl.constexpr(0.6366197723675814)
_HALF_PI = tl.constexpr(1.5707963267948966)
_HALF_PI_REST = tl.constexpr(6.123233995736766e-17)


@triton.jit
def _exponential(re, im):
    """e^z in double: quarters of a turn, and the series of an angle of at most pi / 4."""
    quarter = tl.floor(im * _TWO_OVER_PI + 0.5)
    angle = tl.fma(
        -quarter, tl.full(im.shape, _HALF_PI, tl.float64), im
    )  # tl.fma rounds Python numbers to float32
    angle = tl.fma(-quarter, tl.full(im.shape, _HALF_PI_REST, tl.float64), angle)
    square = angle * angle
    sine = square * 0 + 1
    cosine = square * 0 + 1
    for i in tl.static_range(9):
        sine = 1 - square * sine * (1 / ((18 - 2 * i) * (19 - 2 * i)))
        cosine = 1 - square * cosine * (1 / ((17 - 2 * i) * (18 - 2 * i)))
    sine = sine * angle
    turn = quarter.to(tl.int64)
    odd = (turn & 1) != 0
    negative = (turn & 2) != 0
    sine, cosine = tl.where(odd, cosine, sine), tl.where(odd, -sine, cosine)
    size = tl.exp(re)
    return size * tl.where(negative, -cosine, cosine), size * tl.where(negative, -sine, sine)


@triton.jit
def _divided(a_re, a_im, b_re, b_im):
    scale = 1 / (b_re * b_re + b_im * b_im)
    return multiply(a_re, a_im, b_re * scale, -b_im * scale)


@triton.jit
def _phi(re, im, BILINEAR: tl.constexpr):
    """phi(z) and its derivative."""
    if BILINEAR:
        phi_re, phi_im = _divided(re * 0 + 1, re * 0, 1 - re / 2, -im / 2)
        slope_re, slope_im = multiply(phi_re, phi_im, phi_re / 2, phi_im / 2)
    else:
        near = re * re + im * im < 0.25
        phi_re, phi_im = re * 0, re * 0
        slope_re, slope_im = re * 0, re * 0
        factor = tl.full(re.shape, 4.779477332387385e-14, tl.float64)  # 1 / 16!
        for i in tl.static_range(16):
            slope_re, slope_im = multiply(slope_re, slope_im, re, im)
            slope_re, slope_im = slope_re + phi_re, slope_im + phi_im
            phi_re, phi_im = multiply(phi_re, phi_im, re, im)
            phi_re += factor
            factor = factor * (16 - i)
        away_re, away_im = tl.where(near, 1.0, re), tl.where(near, 0.0, im)
        e_re, e_im = _exponential(away_re, away_im)
        far_re, far_im = _divided(e_re - 1, e_im, away_re, away_im)
        steep_re, steep_im = _divided(e_re - far_re, e_im - far_im, away_re, away_im)
        phi_re, phi_im = tl.where(near, phi_re, far_re), tl.where(near, phi_im, far_im)
        slope_re, slope_im = tl.where(near, slope_re, steep_re), tl.where(near, slope_im, steep_im)
    return phi_re, phi_im, slope_re, slope_im


@triton.jit
def diagonal_discretize_kernel(
    a, b, dt, a_minus_one, drive, copies, N, PAIRS: tl.constexpr, BILINEAR: tl.constexpr
):  # fmt: skip
    """a, b (copies, N), dt (heads) -> a_minus_one, drive (heads, N) of a step."""
    h = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, PAIRS)
    here, at, step = n < N, (h % copies) * N + n, tl.load(dt + h)
    re, im = load(a, at, here)
    re, im = re * step, im * step
    b_re, b_im = load(b, at, here)
    phi_re, phi_im, _, _ = _phi(re, im, BILINEAR)
    re, im = multiply(re, im, phi_re, phi_im)
    store(a_minus_one, h * N + n, re, im, here)
    re, im = multiply(b_re * step, b_im * step, phi_re, phi_im)
    store(drive, h * N + n, re, im, here)


@triton.jit
def diagonal_discretize_backward_kernel(
    a, b, dt, g_a_minus_one, g_drive, da, db, d_dt, copies, N, PAIRS: tl.constexpr, BILINEAR: tl.constexpr
):  # fmt: skip
    """What the kernel above takes, and the gradients of its results -> those of each head: da, db (heads, N), d_dt."""
    h = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, PAIRS)
    here, at, step = n < N, (h % copies) * N + n, tl.load(dt + h)
    a_re, a_im = load(a, at, here)
    b_re, b_im = load(b, at, here)
    ga_re, ga_im = load(g_a_minus_one, h * N + n, here)
    gb_re, gb_im = load(g_drive, h * N + n, here)
    re, im = a_re * step, a_im * step
    phi_re, phi_im, slope_re, slope_im = _phi(re, im, BILINEAR)
    along_re, along_im = multiply(re, im, slope_re, slope_im)
    x_re, x_im = multiply(phi_re + along_re, -phi_im - along_im, ga_re, ga_im)
    along_re, along_im = multiply(b_re * step, b_im * step, slope_re, slope_im)
    more_re, more_im = multiply(along_re, -along_im, gb_re, gb_im)
    x_re, x_im = x_re + more_re, x_im + more_im
    drive_re, drive_im = multiply(phi_re, -phi_im, gb_re, gb_im)
    store(da, h * N + n, step * x_re, step * x_im, here)
    store(db, h * N + n, step * drive_re, step * drive_im, here)
    pairs = a_re * x_re + a_im * x_im + b_re * drive_re + b_im * drive_im
    tl.store(d_dt + h, tl.sum(tl.where(here, pairs, 0.0), 0))


def _block(pairs: int, bilinear: bool) -> dict[str, Any]:
    block = triton.next_power_of_2(max(1, pairs))
    return {"PAIRS": block, "BILINEAR": bilinear, "num_warps": max(1, min(8, block // 32))}


def diagonal_discretize(a: Tensor, b: Tensor, dt: Tensor, bilinear: bool, wide: bool) -> tuple[Tensor, ...]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.diagonal_discretize``."""
    heads, (copies, pairs) = len(dt), a.shape
    dtype = torch.complex128 if wide else torch.complex64
    results = [a.new_empty(heads, pairs, dtype=dtype) for _ in range(2)]
    if heads:
        diagonal_discretize_kernel[(heads,)](
            *reals(a, b, dt, *results), copies, pairs, **_block(pairs, bilinear)
        )
    return tuple(results)


def diagonal_discretize_backward(
    g_a: Tensor, g_b: Tensor, a: Tensor, b: Tensor, dt: Tensor, bilinear: bool, wide: bool
) -> tuple[Tensor, ...]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.diagonal_discretize``."""
    heads, (copies, pairs) = len(dt), a.shape
    dtype = a.dtype if heads == copies else torch.complex128  # of each head, before they are added up
    results = [a.new_empty(heads, pairs, dtype=dtype) for _ in range(2)]
    d_dt = torch.empty_like(dt, memory_format=torch.contiguous_format)
    if heads:
        diagonal_discretize_backward_kernel[(heads,)](
            *reals(a, b, dt, g_a, g_b, *results, d_dt), copies, pairs, **_block(pairs, bilinear)
        )
    return *(of_copies(t, copies).to(a.dtype) for t in results), d_dt
