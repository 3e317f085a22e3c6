"""S4's generating function by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU).

A node t stands for s / y with y = 1 or s = 1, so that nothing is infinite; all products of a head and a node share the
poles' reciprocals, one for a conjugate pair. M and the factors of the adjoint are those of csrc/dplr_generating/cuda.h.
Gauss-Jordan eliminates the rows (M_qb, I + y M_qp) from (M_cb, y M_cp), with a pivot chosen for each node: then M_cb
has become M_cb - y M_cp X M_qb, and M_qb has become X M_qb; columns I and 0 beside them have become X and -y M_cp X.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from .reference import stacked

#: Nodes that one program of the moments sums over.
SEGMENT = 512


@triton.jit
def _node(t, l, mask):  # noqa: E741
    """y and s of the nodes; a masked one is infinite, where every pole is far away."""
    value = tl.load(t + l, mask=mask, other=float("inf"))
    near = tl.abs(value) <= 1
    return tl.where(near, 1.0, 1 / tl.where(near, 1.0, value)), tl.where(near, value, 1.0)


@triton.jit
def _scale(w_re, w_im):
    """A number near 1 / |w|, with which no square of a product overflows."""
    return 1 / tl.maximum(tl.maximum(tl.abs(w_re), tl.abs(w_im)), 1e-30)


@triton.jit
def _inverse(y, s, w_re, w_im, scale):
    """1 / (scale (i s - y w) (i s - y w*)): its denominator's real part does not cancel near the imaginary axis."""
    re = y * y * (scale * w_re * w_re) - (s - y * w_im) * (scale * (s + y * w_im))
    minus_im = 2 * y * s * (scale * w_re)
    factor = 1 / (re * re + minus_im * minus_im)
    return re * factor, minus_im * factor


@triton.jit
def _multiply(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def _picked(pick, m_re, m_im):
    """The row of (ROWS, COLUMNS, NODES) that is picked for each node."""
    return tl.sum(tl.where(pick, m_re, 0.0), 0)[None, :, :], tl.sum(tl.where(pick, m_im, 0.0), 0)[None, :, :]


@triton.jit
def dplr_generating_kernel(
    c, p, q, b, w, t, g, out, channels, rank, heads, N, L,
    TOGETHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NODES: tl.constexpr, FACTORS: tl.constexpr,
):  # fmt: skip
    """c (channels, heads, N), p and q (rank, heads, N), b and w (heads, N), as pairs of reals, t (L)
    -> out (channels, heads, L), or the adjoint's factors of g: rows and columns (channels + rank + rank, heads, L).

    A program computes NODES nodes of TOGETHER channels of a head: the first rows of M; the others are the low rank's.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    tiles = tl.cdiv(L, NODES)
    l = (tl.program_id(0) % tiles).to(tl.int64) * NODES + tl.arange(0, NODES)  # noqa: E741
    head = (tl.program_id(0) // tiles % heads).to(tl.int64)
    j = tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    channel = (tl.program_id(0) // tiles // heads).to(tl.int64) * TOGETHER + j
    of_c, of_q, of_p = (j < TOGETHER) & (channel < channels), j >= TOGETHER, (k > 0) & (k <= rank)
    c_at = c + (channel * heads + head) * N * 2
    q_at = q + ((j - TOGETHER).to(tl.int64) * heads + head) * N * 2
    p_at = p + ((k - 1).to(tl.int64) * heads + head) * N * 2
    b_at = b + (head * N + k.to(tl.int64) * 0) * 2
    y, s = _node(t, l, l < L)

    m_re = tl.zeros((ROWS, COLUMNS, NODES), dtype)
    m_im = tl.zeros((ROWS, COLUMNS, NODES), dtype)
    for n in range(N):
        w_re, w_im = tl.load(w + (head * N + n) * 2), tl.load(w + (head * N + n) * 2 + 1)
        scale = _scale(w_re, w_im)
        left_re = tl.load(c_at + 2 * n, mask=of_c, other=0.0) + tl.load(q_at + 2 * n, mask=of_q, other=0.0)
        left_im = tl.load(c_at + 2 * n + 1, mask=of_c, other=0.0) + tl.load(
            q_at + 2 * n + 1, mask=of_q, other=0.0
        )
        right_re = tl.load(b_at + 2 * n, mask=k == 0, other=0.0) + tl.load(p_at + 2 * n, mask=of_p, other=0.0)
        right_im = tl.load(b_at + 2 * n + 1, mask=k == 0, other=0.0) + tl.load(
            p_at + 2 * n + 1, mask=of_p, other=0.0
        )
        v_re, v_im = _multiply(left_re[:, None], left_im[:, None], right_re[None, :], right_im[None, :])
        # a product is (i s c0 + y c1) times the inverse
        c0 = (2 * scale * v_re)[:, :, None]
        c1 = (-2 * (v_re * (scale * w_re) + v_im * (scale * w_im)))[:, :, None]
        re, im = _inverse(y, s, w_re, w_im, scale)
        m_re += c1 * (y * re)[None, None, :]  # one by one: a multiply-add each
        m_re -= c0 * (s * im)[None, None, :]
        m_im += c1 * (y * im)[None, None, :]
        m_im += c0 * (s * re)[None, None, :]

    one = ((j[:, None] - TOGETHER == k[None, :] - 1) & of_q[:, None] & of_p[None, :])[:, :, None]
    weight = tl.where(of_p[None, :, None], y[None, None, :], 1.0)
    m_re, m_im = m_re * weight + tl.where(one, 1.0, 0.0), m_im * weight
    u_re = tl.zeros((ROWS, COLUMNS, NODES), dtype) + tl.where(one, 1.0, 0.0)
    u_im = tl.zeros((ROWS, COLUMNS, NODES), dtype)
    which = (
        tl.zeros((ROWS, NODES), tl.int32) + tl.where(of_q, -1, -2)[:, None]
    )  # column that a row was the pivot of
    for r in range(rank):
        here = (k == r + 1)[None, :, None]
        column_re, column_im = tl.sum(tl.where(here, m_re, 0.0), 1), tl.sum(tl.where(here, m_im, 0.0), 1)
        size = tl.where(which == -1, column_re * column_re + column_im * column_im, -1.0)
        largest = (size == tl.max(size, 0)[None, :]) & (which == -1)
        first = tl.min(tl.where(largest, j[:, None], ROWS), 0)
        chosen = j[:, None] == first[None, :]
        pick = chosen[:, None, :]
        row_re, row_im = _picked(pick, m_re, m_im)
        pivot_re = tl.sum(tl.where(chosen, column_re, 0.0), 0)[None, :]
        pivot_im = tl.sum(tl.where(chosen, column_im, 0.0), 0)[None, :]
        inverse = 1 / (pivot_re * pivot_re + pivot_im * pivot_im)
        pivot_re, pivot_im = pivot_re * inverse, -pivot_im * inverse
        f_re, f_im = _multiply(
            column_re, column_im, pivot_re, pivot_im
        )  # the pivot's own row is divided by it
        f_re, f_im = (
            tl.where(chosen, pivot_re, -f_re)[:, None, :],
            tl.where(chosen, pivot_im, -f_im)[:, None, :],
        )
        more_re, more_im = _multiply(f_re, f_im, row_re, row_im)
        m_re, m_im = tl.where(pick, 0.0, m_re) + more_re, tl.where(pick, 0.0, m_im) + more_im
        if FACTORS:
            row_re, row_im = _picked(pick, u_re, u_im)
            more_re, more_im = _multiply(f_re, f_im, row_re, row_im)
            u_re, u_im = tl.where(pick, 0.0, u_re) + more_re, tl.where(pick, 0.0, u_im) + more_im
        which = tl.where(chosen, r, which)

    first_column = (k == 0)[None, :, None]
    value_re, value_im = (
        tl.sum(tl.where(first_column, m_re, 0.0), 1),
        tl.sum(tl.where(first_column, m_im, 0.0), 1),
    )
    at = ((channel * heads + head) * L)[:, None] + l[None, :]
    mask = of_c[:, None] & (l < L)[None, :]
    if FACTORS:
        g_re, g_im = tl.load(g + 2 * at, mask=mask, other=0.0), tl.load(g + 2 * at + 1, mask=mask, other=0.0)
        out_re, out_im = _multiply(g_re, g_im, y[None, :], -s[None, :])
        sums_re, sums_im = _multiply(out_re[:, None, :], out_im[:, None, :], u_re, -u_im)
        solved = which[:, None, :] == (k - 1)[None, :, None]
        solved_re = tl.sum(tl.where(solved, value_re[:, None, :], 0.0), 0)
        solved_im = tl.sum(tl.where(solved, value_im[:, None, :], 0.0), 0)
        of_row = ((channels + k - 1).to(tl.int64) * heads + head) * L
        of_column = ((channels + rank + k - 1).to(tl.int64) * heads + head) * L
        inside = of_p[:, None] & (l < L)[None, :]
        row, column = of_row[:, None] + l[None, :], of_column[:, None] + l[None, :]
        tl.store(out + 2 * row, tl.sum(sums_re, 0), mask=inside)
        tl.store(out + 2 * row + 1, tl.sum(sums_im, 0), mask=inside)
        tl.store(out + 2 * column, -y[None, :] * solved_re, mask=inside)
        tl.store(out + 2 * column + 1, y[None, :] * solved_im, mask=inside)
    else:
        out_re, out_im = _multiply(value_re, value_im, y[None, :], s[None, :])
    tl.store(out + 2 * at, out_re, mask=mask)
    tl.store(out + 2 * at + 1, out_im, mask=mask)


@triton.jit
def dplr_generating_moments_kernel(
    factors, w, t, out, channels, rank, heads, N, L,
    PRODUCTS: tl.constexpr, POLES: tl.constexpr, NODES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """factors (channels + rank + rank, heads, L), w (heads, N), t (L) -> out (segments, products, 2, heads, N).

    The gradients of a product's weights, and of its pole if its weight were 1. A program sums over a segment of LENGTH
    nodes, for POLES poles and PRODUCTS products of a head.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    across = tl.cdiv(N, POLES)
    products = (channels + rank) * (1 + rank)
    groups = tl.cdiv(products, PRODUCTS)
    n = tl.program_id(0) % across * POLES + tl.arange(0, POLES)
    head = (tl.program_id(0) // across % heads).to(tl.int64)
    product = tl.program_id(0) // across // heads % groups * PRODUCTS + tl.arange(0, PRODUCTS)
    segment = (tl.program_id(0) // across // heads // groups).to(tl.int64)
    begin = segment * LENGTH
    end = tl.minimum(L, begin + LENGTH)
    j, k = product // (1 + rank), product % (1 + rank)
    of_row = (j.to(tl.int64) * heads + head) * L
    of_column = ((channels + rank + k - 1).to(tl.int64) * heads + head) * L
    w_re = tl.load(w + (head * N + n) * 2, mask=n < N, other=-1.0)
    w_im = tl.load(w + (head * N + n) * 2 + 1, mask=n < N, other=0.0)
    scale = _scale(w_re, w_im)
    s0 = tl.zeros((PRODUCTS, POLES, NODES), dtype)
    s1 = tl.zeros((PRODUCTS, POLES, NODES), dtype)
    t0 = tl.zeros((PRODUCTS, POLES, NODES), dtype)
    t1 = tl.zeros((PRODUCTS, POLES, NODES), dtype)
    for first in range(begin, end, NODES):
        l = first + tl.arange(0, NODES)  # noqa: E741
        y, s = _node(t, l, l < end)
        row, column = of_row[:, None] + l[None, :], of_column[:, None] + l[None, :]
        mask = (product < products)[:, None] & (l < end)[None, :]
        inner = mask & (k > 0)[:, None]
        row_re = tl.load(factors + 2 * row, mask=mask, other=0.0)
        row_im = tl.load(factors + 2 * row + 1, mask=mask, other=0.0)
        column_re = tl.where((k == 0)[:, None], 1.0, tl.load(factors + 2 * column, mask=inner, other=0.0))
        column_im = tl.load(factors + 2 * column + 1, mask=inner, other=0.0)
        gm_re, gm_im = _multiply(row_re, row_im, column_re, column_im)
        gm_re, gm_im = gm_re[:, None, :], gm_im[:, None, :]
        y, s = y[None, :], s[None, :]
        e_re, e_im = _inverse(y, s, w_re[:, None], w_im[:, None], scale[:, None])
        e2_re, e2_im = _multiply(y * y * e_re, y * y * e_im, e_re, e_im)
        s0 += gm_re * (y * e_re)[None, :, :]
        s0 += gm_im * (y * e_im)[None, :, :]
        s1 += gm_im * (s * e_re)[None, :, :]
        s1 -= gm_re * (s * e_im)[None, :, :]
        t0 += gm_re * (y * e2_re)[None, :, :]
        t0 += gm_im * (y * e2_im)[None, :, :]
        t1 += gm_im * (s * e2_re)[None, :, :]
        t1 -= gm_re * (s * e2_im)[None, :, :]
    scale = scale[None, :]
    re, im = scale * w_re[None, :], scale * w_im[None, :]
    s0, s1, t0, t1 = tl.sum(s0, 2), tl.sum(s1, 2), tl.sum(t0, 2), tl.sum(t1, 2)
    plane = heads * N + head * 0
    to = out + ((segment * products + product)[:, None] * 2 * plane + (head * N + n)[None, :]) * 2
    mask = (product < products)[:, None] & (n < N)[None, :]
    tl.store(to, 2 * (scale * s1 - re * s0), mask=mask)
    tl.store(to + 1, -2 * im * s0, mask=mask)
    tl.store(to + 2 * plane, 2 * scale * s0 - 4 * im * (im * t0), mask=mask)
    tl.store(to + 2 * plane + 1, 4 * im * (re * t0 - scale * t1), mask=mask)


def _reals(*tensors: Tensor) -> list[Tensor]:
    return [torch.view_as_real(plain(tensor)) for tensor in tensors]


def tiling(channels: int, rank: int, most: int = 2048) -> tuple[int, int, int]:
    """Rows and columns of M that a program holds, powers of two, and its nodes: 128, or ``most`` numbers in all."""
    rows, columns = triton.next_power_of_2(max(1, channels) + rank), triton.next_power_of_2(1 + rank)
    return rows, columns, max(16, min(128, most // (rows * columns)))


def _generate(
    c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor, g: Tensor | None, out: Tensor
) -> Tensor:
    """Fill out. A program takes all channels if it has to add them up, else about 4."""
    (channels, heads, N), rank, L = c.shape, p.shape[0], t.shape[0]
    if g is None:
        rows, columns, nodes = tiling(min(channels, 4), rank)
    else:  # holds the inverse too: in double precision registers last for half as many numbers
        rows, columns, nodes = tiling(channels, rank, 1024 if t.dtype == torch.float64 else 2048)
    together = rows - rank
    groups = triton.cdiv(channels, together) if g is None else 1
    if out.numel():
        dplr_generating_kernel[(triton.cdiv(L, nodes) * heads * groups,)](
            *_reals(c, p, q, b, w), t.contiguous(), None if g is None else _reals(g)[0], torch.view_as_real(out),
            channels, rank, heads, N, L,
            TOGETHER=together, ROWS=rows, COLUMNS=columns, NODES=nodes, FACTORS=g is not None, num_warps=4,
        )  # fmt: skip
    return out


def dplr_generating(c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor) -> Tensor:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.dplr_generating``."""
    return _generate(c, p, q, b, w, t, None, c.new_empty((*c.shape[:2], t.shape[0])))


def dplr_generating_backward(
    g: Tensor, c: Tensor, p: Tensor, q: Tensor, b: Tensor, w: Tensor, t: Tensor
) -> tuple[Tensor, ...]:
    """The implementation for backend ``triton``: gradients of c, p, q, b and w."""
    (channels, heads, N), rank, L = c.shape, p.shape[0], t.shape[0]
    factors = _generate(c, p, q, b, w, t, g, c.new_empty((channels + 2 * rank, heads, L)))
    left, right = stacked(c, q), stacked(b.unsqueeze(0), p)
    v = left.unsqueeze(1) * right
    segments, together = (
        max(1, triton.cdiv(L, SEGMENT)),
        min(4, triton.next_power_of_2(v.shape[0] * v.shape[1])),
    )
    moments = v.new_empty((segments, *v.shape[:2], 2, heads, N))
    if moments.numel():
        blocks = triton.cdiv(N, 8) * heads * triton.cdiv(v.shape[0] * v.shape[1], together) * segments
        dplr_generating_moments_kernel[(blocks,)](
            *_reals(factors, w), t.contiguous(), torch.view_as_real(moments), channels, rank, heads, N, L,
            PRODUCTS=together, POLES=8, NODES=16, LENGTH=SEGMENT, num_warps=4,
        )  # fmt: skip
    dv, slopes = moments.sum(0).unbind(2)
    dleft, dright = (dv * right.conj()).sum(1), (dv * left.unsqueeze(1).conj()).sum(0)
    dw = (v.conj() * slopes).sum((0, 1))
    return (
        dleft[:channels],
        dright[1:].contiguous(),
        dleft[channels:].contiguous(),
        dright[0].contiguous(),
        dw,
    )
