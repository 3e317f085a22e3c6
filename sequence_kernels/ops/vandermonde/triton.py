"""Vandermonde products by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU).

As in the other implementations a position l is T i + j and e^{x l} = e^{x T i} e^{x j}: the product is a real matrix
product of factors of the rows i with factors of the columns j, and an exponential is evaluated for each factor only.
Im(x) is held as a 64-bit fraction of a turn, whose product with an integer is reduced modulo one turn exactly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import sets_and_channels
from ..triton_registers import every_register

#: Positions that one program of the transpose sums over.
SEGMENT = 16384

_INVERSE_TWO_PI = tl.constexpr(0.15915494309189535)
_INVERSE_TWO_PI_REST = tl.constexpr(-9.839338337591243e-18)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LOG2_E_REST = tl.constexpr(2.0355273740931033e-17)
_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def _exponents(x, n, mask, dtype: tl.constexpr):
    """x_n as (turns, high, low): a 64-bit fraction of a turn, and Re(x_n) / ln 2 as the sum of two numbers."""
    re = tl.load(x + 2 * n, mask=mask, other=0.0).to(tl.float64)
    im = tl.load(x + 2 * n + 1, mask=mask, other=0.0).to(tl.float64)
    inverse_two_pi = tl.full(im.shape, _INVERSE_TWO_PI, tl.float64)  # tl.fma rounds Python numbers to float32
    log2_e = tl.full(re.shape, _LOG2_E, tl.float64)
    upper = tl.floor(im * (_INVERSE_TWO_PI * 4294967296.0) + 0.5)  # in units of 2^-32
    lower = tl.fma(im, inverse_two_pi, -upper / 4294967296.0) + im * _INVERSE_TWO_PI_REST
    turns = (upper.to(tl.int64) << 32) + (lower * 18446744073709551616.0).to(tl.int64)
    high = (re * log2_e).to(dtype)
    low = tl.fma(re, log2_e, -high.to(tl.float64)) + re * _LOG2_E_REST
    return turns, high + (im - im).to(dtype), low.to(dtype)  # NaN if Im(x_n) is not finite


@triton.jit
def _sine_and_cosine(turns, dtype: tl.constexpr):
    """Of a 64-bit fraction of a turn: a quadrant, and the series of an angle of at most pi / 4."""
    terms: tl.constexpr = 5 if dtype == tl.float32 else 9
    quadrant = ((turns >> 61) + 1) >> 1
    angle = (turns - (quadrant << 62)).to(dtype) * (_TWO_PI / 18446744073709551616.0)
    square = angle * angle
    sine = square * 0 + 1
    cosine = square * 0 + 1
    for i in tl.static_range(terms):
        sine = 1 - square * sine * (1 / ((2 * terms - 2 * i) * (2 * terms - 2 * i + 1)))
        cosine = 1 - square * cosine * (1 / ((2 * terms - 2 * i - 1) * (2 * terms - 2 * i)))
    sine = sine * angle
    odd = (quadrant & 1) != 0
    negative = (quadrant & 2) != 0
    sine, cosine = tl.where(odd, cosine, sine), tl.where(odd, -sine, cosine)
    return tl.where(negative, -sine, sine), tl.where(negative, -cosine, cosine)


@triton.jit
def _exponential(turns, high, low, k):
    """The real and imaginary parts of e^{x k} for integers k."""
    dtype: tl.constexpr = high.dtype
    steps = k.to(dtype)
    whole = tl.floor(high * steps + 0.5)
    magnitude = tl.exp2(tl.fma(high, steps, -whole) + low * steps) * tl.exp2(whole)
    sine, cosine = _sine_and_cosine(turns * k, dtype)
    return magnitude * cosine, magnitude * sine


@triton.jit
def _position_power(position, power, dtype: tl.constexpr):
    base = position.to(dtype)
    result = base * 0 + 1
    for _ in range(power):
        result = result * base
    return result


@triton.jit
def vandermonde_kernel(
    v, x, out, channels, N, L, power,
    PAIRS: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """v (sets, channels, N), x (channels, N) -> out (sets, channels, L); complex numbers as pairs of real ones.

    A program computes STEPS * WIDTH positions of one row of out.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = tl.cdiv(L, STEPS * WIDTH)
    row = tl.program_id(0).to(tl.int64) // tiles
    first = (tl.program_id(0) % tiles).to(tl.int64) * (STEPS * WIDTH)
    i = first + tl.arange(0, STEPS).to(tl.int64) * WIDTH
    j = tl.arange(0, WIDTH).to(tl.int64)
    re = tl.zeros((STEPS, WIDTH), dtype)
    im = tl.zeros((STEPS, WIDTH), dtype)
    for n0 in range(0, N, DEPTH):
        n = n0 + tl.arange(0, DEPTH)
        turns, high, low = _exponents(x + row % channels * N * 2, n, n < N, dtype)
        column_re, column_im = _exponential(turns[:, None], high[:, None], low[:, None], j[None, :])
        step_re, step_im = _exponential(turns[None, :], high[None, :], low[None, :], i[:, None])
        v_re = tl.load(v + (row * N + n) * 2, mask=n < N, other=0.0)[None, :]
        v_im = tl.load(v + (row * N + n) * 2 + 1, mask=n < N, other=0.0)[None, :]
        row_re = v_re * step_re - v_im * step_im
        row_im = v_re * step_im + v_im * step_re
        re = tl.dot(row_re, column_re, re, input_precision="ieee", out_dtype=dtype)
        re = tl.dot(-row_im, column_im, re, input_precision="ieee", out_dtype=dtype)
        if not PAIRS:
            im = tl.dot(row_re, column_im, im, input_precision="ieee", out_dtype=dtype)
            im = tl.dot(row_im, column_re, im, input_precision="ieee", out_dtype=dtype)
    position = i[:, None] + j[None, :]
    scale = _position_power(position, power, dtype)
    to = out + (row * L + position) * (1 if PAIRS else 2)
    if PAIRS:
        tl.store(to, 2 * scale * re, mask=position < L)
    else:
        tl.store(to, scale * re, mask=position < L)
        tl.store(to + 1, scale * im, mask=position < L)


@triton.jit
def vandermonde_transpose_kernel(
    g, x, out, rows, channels, N, L, power,
    COMPLEX: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """g (rows, L), x (channels, N) -> out (segments, rows, N): sums over segments of LENGTH positions."""
    dtype: tl.constexpr = out.dtype.element_ty
    groups = tl.cdiv(N, DEPTH)
    n = tl.program_id(0) % groups * DEPTH + tl.arange(0, DEPTH)
    row = (tl.program_id(0) // groups % rows).to(tl.int64)
    segment = (tl.program_id(0) // groups // rows).to(tl.int64)
    begin = segment * LENGTH
    end = tl.minimum(L, begin + LENGTH)
    turns, high, low = _exponents(x + row % channels * N * 2, n, n < N, dtype)
    j = tl.arange(0, WIDTH).to(tl.int64)
    column_re, column_im = _exponential(turns[None, :], high[None, :], low[None, :], j[:, None])
    sum_re = tl.zeros((DEPTH,), dtype)
    sum_im = tl.zeros((DEPTH,), dtype)
    for first in range(begin, end, STEPS * WIDTH):
        i = first + tl.arange(0, STEPS).to(tl.int64) * WIDTH
        position = i[:, None] + j[None, :]
        scale = _position_power(position, power, dtype)
        at = g + (row * L + position) * (2 if COMPLEX else 1)
        g_re = tl.load(at, mask=position < end, other=0.0) * scale
        part_re = tl.dot(g_re, column_re, input_precision="ieee", out_dtype=dtype)
        part_im = tl.dot(g_re, column_im, input_precision="ieee", out_dtype=dtype)
        if COMPLEX:
            g_im = tl.load(at + 1, mask=position < end, other=0.0) * scale
            part_re = tl.dot(-g_im, column_im, part_re, input_precision="ieee", out_dtype=dtype)
            part_im = tl.dot(g_im, column_re, part_im, input_precision="ieee", out_dtype=dtype)
        step_re, step_im = _exponential(turns[None, :], high[None, :], low[None, :], i[:, None])
        used = (i < end)[:, None]
        sum_re += tl.sum(tl.where(used, part_re * step_re - part_im * step_im, 0.0), 0)
        sum_im += tl.sum(tl.where(used, part_re * step_im + part_im * step_re, 0.0), 0)
    to = out + ((segment * rows + row) * N + n) * 2
    tl.store(to, sum_re, mask=n < N)
    tl.store(to + 1, sum_im, mask=n < N)


def _complex(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_complex() else torch.complex(tensor, torch.zeros_like(tensor))


def vandermonde(v: Tensor, x: Tensor, L: int, conjugate: bool, power: int) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.vandermonde``."""
    pairs = conjugate or not v.is_complex()  # a real product is half that of pairs with imaginary parts of 0
    weights, exponents = sets_and_channels(_complex(v), _complex(x))
    (sets, channels, N), real = weights.shape, weights.real.dtype
    out = weights.new_empty((sets, channels, L), dtype=real if pairs else weights.dtype)
    tile = 64 if real == torch.float32 else 32
    if out.numel():
        vandermonde_kernel[(sets * channels * triton.cdiv(L, tile * tile),)](
            torch.view_as_real(weights), torch.view_as_real(exponents), out if pairs else torch.view_as_real(out),
            channels, N, L, power, PAIRS=pairs, STEPS=tile, WIDTH=tile, DEPTH=16, num_warps=8,
        )  # fmt: skip
    batch = torch.broadcast_shapes(v.shape[:-1], x.shape[:-1])
    return (out if conjugate or not pairs else out / 2).reshape(*batch, L)


def vandermonde_transpose(g: Tensor, x: Tensor, power: int) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.vandermonde_transpose``."""
    weights, exponents = sets_and_channels(g, _complex(x))
    (sets, channels, L), N = weights.shape, exponents.shape[-1]
    segments = max(1, triton.cdiv(L, SEGMENT))
    partial = exponents.new_empty((segments, sets, channels, N))
    tile = 64 if g.dtype == torch.float32 else 32
    if partial.numel():
        vandermonde_transpose_kernel[(segments * sets * channels * triton.cdiv(N, 16),)](
            torch.view_as_real(weights) if g.is_complex() else weights, torch.view_as_real(exponents),
            torch.view_as_real(partial), sets * channels, channels, N, L, power,
            COMPLEX=g.is_complex(), STEPS=tile, WIDTH=tile, DEPTH=16, LENGTH=SEGMENT,
            num_warps=4 if g.dtype == torch.complex64 else 8, **every_register(),
        )  # fmt: skip
    out = partial[0] if segments == 1 else partial.sum(0)
    out = out.reshape(*torch.broadcast_shapes(g.shape[:-1], x.shape[:-1]), N)
    return out if g.is_complex() or x.is_complex() else out.real.contiguous()
