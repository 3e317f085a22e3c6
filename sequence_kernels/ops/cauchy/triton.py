"""Cauchy products by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU).

Every node-pole pair costs a reciprocal, which up to four sets of weights with those nodes and poles share.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain, sets_and_channels
from ..triton_registers import every_register
from .reference import both_of_pairs

#: Nodes that one program of the transpose sums over.
SEGMENT = 4096


@triton.jit
def _inverse_power(re, im, order):
    """1 / (re + i im)^order."""
    scale = 1 / (re * re + im * im)
    first_re = re * scale
    first_im = -im * scale
    power_re = first_re
    power_im = first_im
    for _ in range(1, order):
        power_re, power_im = (
            power_re * first_re - power_im * first_im,
            power_re * first_im + power_im * first_re,
        )
    return power_re, power_im


@triton.jit
def _outside(re, im, order):
    """Where 1 / (re + i im)^order leaves the range of float32, or its digits are lost: summed in float64."""
    squared = re * re + im * im
    high = tl.exp2(tl.minimum(120.0, 200.0 / order))
    return (squared > high) | (squared * high < 1)


@triton.jit
def _finite_nodes(z, l, mask):  # noqa: E741
    """The nodes, 1e9 instead of infinite ones, and which of them count."""
    re = tl.load(z + 2 * l, mask=mask, other=1e9)
    im = tl.load(z + 2 * l + 1, mask=mask, other=0.0)
    infinite = (tl.abs(re) == float("inf")) | (tl.abs(im) == float("inf"))
    return tl.where(infinite, 1e9, re), tl.where(infinite, 0.0, im), mask & (infinite == 0)


@triton.jit
def _both(z_re, z_im, w_re, w_im, order, PAIRS: tl.constexpr):
    """v r, plus conj(v) r' for pairs, is Re(v) a + Im(v) b with a = r + r', b = i (r - r') for all sets."""
    r_re, r_im = _inverse_power(z_re - w_re, z_im - w_im, order)
    a_re, a_im, b_re, b_im = r_re, r_im, -r_im, r_re
    if PAIRS:
        m_re, m_im = _inverse_power(z_re - w_re, z_im + w_im, order)
        a_re, a_im, b_re, b_im = r_re + m_re, r_im + m_im, m_im - r_im, r_re - m_re
    return a_re, a_im, b_re, b_im


@triton.jit
def cauchy_kernel(
    v, z, w, out, sets, channels, N, L, z_stride, order,
    PAIRS: tl.constexpr, SETS: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """v (sets, channels, N), z (channels, L), w (channels, N) -> out (sets, channels, L), all as pairs of reals.

    A program computes NODES nodes of SETS sets of a channel.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = tl.cdiv(L, NODES)
    l = (tl.program_id(0) % tiles).to(tl.int64) * NODES + tl.arange(0, NODES)  # noqa: E741
    channel = (tl.program_id(0) // tiles % channels).to(tl.int64)
    s = (tl.program_id(0) // tiles // channels).to(tl.int64) * SETS + tl.arange(0, SETS)
    z_re, z_im, counts = _finite_nodes(z + channel * z_stride * 2, l, l < L)
    row = s * channels + channel
    sum_re = tl.zeros((SETS, NODES), dtype)
    sum_im = tl.zeros((SETS, NODES), dtype)
    for n in range(N):
        w_re = tl.load(w + (channel * N + n) * 2)
        w_im = tl.load(w + (channel * N + n) * 2 + 1)
        v_re = tl.load(v + (row * N + n) * 2, mask=s < sets, other=0.0)[:, None]
        v_im = tl.load(v + (row * N + n) * 2 + 1, mask=s < sets, other=0.0)[:, None]
        a_re, a_im, b_re, b_im = _both(z_re, z_im, w_re, w_im, order, PAIRS)
        if dtype == tl.float32:
            outside = counts & _outside(z_re - w_re, z_im - w_im, order)
            if PAIRS:
                outside |= counts & _outside(z_re - w_re, z_im + w_im, order)
            a_re, a_im = tl.where(outside, 0.0, a_re), tl.where(outside, 0.0, a_im)
            b_re, b_im = tl.where(outside, 0.0, b_re), tl.where(outside, 0.0, b_im)
            if tl.max(outside.to(tl.int32), 0) > 0:
                c_re, c_im, d_re, d_im = _both(
                    z_re.to(tl.float64),
                    z_im.to(tl.float64),
                    w_re.to(tl.float64),
                    w_im.to(tl.float64),
                    order,
                    PAIRS,
                )
                wide_re = v_re.to(tl.float64) * c_re[None, :] + v_im.to(tl.float64) * d_re[None, :]
                wide_im = v_re.to(tl.float64) * c_im[None, :] + v_im.to(tl.float64) * d_im[None, :]
                sum_re += tl.where(outside[None, :], wide_re, 0.0).to(dtype)
                sum_im += tl.where(outside[None, :], wide_im, 0.0).to(dtype)
        sum_re += v_re * a_re[None, :] + v_im * b_re[None, :]
        sum_im += v_re * a_im[None, :] + v_im * b_im[None, :]
    to = out + (row[:, None] * L + l[None, :]) * 2
    mask = (s < sets)[:, None] & (l < L)[None, :]
    tl.store(to, tl.where(counts[None, :], sum_re, 0.0), mask=mask)
    tl.store(to + 1, tl.where(counts[None, :], sum_im, 0.0), mask=mask)


@triton.jit
def cauchy_transpose_kernel(
    g, z, w, out, sets, channels, N, L, z_stride, order,
    SETS: tl.constexpr, POLES: tl.constexpr, NODES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """g (sets, channels, L), z (channels, L), w (channels, N) -> out (segments, sets, channels, N).

    A program sums over a segment of LENGTH nodes, for POLES poles and SETS sets of a channel.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    across = tl.cdiv(N, POLES)
    groups = tl.cdiv(sets, SETS)
    n = tl.program_id(0) % across * POLES + tl.arange(0, POLES)
    channel = (tl.program_id(0) // across % channels).to(tl.int64)
    s = (tl.program_id(0) // across // channels % groups).to(tl.int64) * SETS + tl.arange(0, SETS)
    segment = (tl.program_id(0) // across // channels // groups).to(tl.int64)
    begin = segment * LENGTH
    end = tl.minimum(L, begin + LENGTH)
    row = s * channels + channel
    w_re = tl.load(w + (channel * N + n) * 2, mask=n < N, other=-1e9)[:, None]
    w_im = tl.load(w + (channel * N + n) * 2 + 1, mask=n < N, other=0.0)[:, None]
    sum_re = tl.zeros((SETS, POLES, NODES), dtype)
    sum_im = tl.zeros((SETS, POLES, NODES), dtype)
    for first in range(begin, end, NODES):
        l = first + tl.arange(0, NODES)  # noqa: E741
        z_re, z_im, counts = _finite_nodes(z + channel * z_stride * 2, l, l < end)
        re = z_re[None, :] - w_re
        im = z_im[None, :] - w_im
        r_re, r_im = _inverse_power(re, im, order)
        at = g + (row[:, None] * L + l[None, :]) * 2
        mask = (s < sets)[:, None] & counts[None, :]
        g_re = tl.load(at, mask=mask, other=0.0)[:, None, :]
        g_im = tl.load(at + 1, mask=mask, other=0.0)[:, None, :]
        if dtype == tl.float32:
            outside = _outside(re, im, order)
            r_re, r_im = tl.where(outside, 0.0, r_re), tl.where(outside, 0.0, r_im)
            if tl.max(tl.max((outside & counts[None, :]).to(tl.int32), 1), 0) > 0:
                x_re, x_im = _inverse_power(
                    z_re[None, :].to(tl.float64) - w_re, z_im[None, :].to(tl.float64) - w_im, order
                )
                wide_re = g_re.to(tl.float64) * x_re[None, :, :] - g_im.to(tl.float64) * x_im[None, :, :]
                wide_im = g_re.to(tl.float64) * x_im[None, :, :] + g_im.to(tl.float64) * x_re[None, :, :]
                used = (outside & counts[None, :])[None, :, :]
                sum_re += tl.where(used, wide_re, 0.0).to(dtype)
                sum_im += tl.where(used, wide_im, 0.0).to(dtype)
        sum_re += g_re * r_re[None, :, :] - g_im * r_im[None, :, :]
        sum_im += g_re * r_im[None, :, :] + g_im * r_re[None, :, :]
    to = out + (((segment * sets + s) * channels + channel)[:, None] * N + n[None, :]) * 2
    mask = (s < sets)[:, None] & (n < N)[None, :]
    tl.store(to, tl.sum(sum_re, 2), mask=mask)
    tl.store(to + 1, tl.sum(sum_im, 2), mask=mask)


def _arguments(weights: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Complex weights (sets, channels, K), z (channels or 1, L), w (channels, N), and the stride of z's channels."""
    weights, z, w = (t if t.is_complex() else torch.complex(t, torch.zeros_like(t)) for t in (weights, z, w))
    if math.prod(z.shape[:-1]) == 1:  # one row of nodes serves every channel
        weights, w = sets_and_channels(weights, w)
        return weights, plain(z.reshape(1, -1)), w, 0
    weights, z, w = sets_and_channels(weights, z, w)
    return weights, z, w, z.shape[-1]


def _result(out: Tensor, *arguments: Tensor) -> Tensor:
    """With the leading dimensions of the arguments, and real if they are."""
    out = out.reshape(*torch.broadcast_shapes(*(t.shape[:-1] for t in arguments)), out.shape[-1])
    return out if arguments[0].is_complex() else out.real.contiguous()


def _sets_together(sets: int) -> int:
    return min(4, triton.next_power_of_2(sets))


def cauchy(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.cauchy``."""
    weights, nodes, poles, stride = _arguments(v, z, w)
    (sets, channels, N), L = weights.shape, nodes.shape[-1]
    out = weights.new_empty((sets, channels, L))
    together = _sets_together(sets)
    if out.numel():
        cauchy_kernel[(triton.cdiv(L, 128) * channels * triton.cdiv(sets, together),)](
            *(torch.view_as_real(t) for t in (weights, nodes, poles, out)),
            sets, channels, N, L, stride, order,
            PAIRS=conjugate, SETS=together, NODES=128, num_warps=1, **every_register(),
        )  # fmt: skip
    return _result(out, v, z, w)


def cauchy_transpose(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.cauchy_transpose``."""
    if conjugate:
        g, z = both_of_pairs(g, z)
    weights, nodes, poles, stride = _arguments(g, z, w)
    (sets, channels, L), N = weights.shape, poles.shape[-1]
    segments = max(1, triton.cdiv(L, SEGMENT))
    partial = weights.new_empty((segments, sets, channels, N))
    together = _sets_together(sets)
    blocks = triton.cdiv(N, 8) * channels * triton.cdiv(sets, together) * segments
    if partial.numel():
        cauchy_transpose_kernel[(blocks,)](
            *(torch.view_as_real(t) for t in (weights, nodes, poles, partial)),
            sets, channels, N, L, stride, order,
            SETS=together, POLES=8, NODES=32, LENGTH=SEGMENT, num_warps=1,
        )  # fmt: skip
    return _result(partial[0] if segments == 1 else partial.sum(0), g, z, w)
