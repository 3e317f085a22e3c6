"""The discretisation and its adjoint by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests).

A program has a head, and all pairs of its states, in double. The formulas are those of csrc/dplr_discretize/cpu.cpp.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_complex import load, multiply, reals, store
from .reference import of_copies


@triton.jit
def _dots(a_re, a_im, b_re, b_im):
    """``Re(sum_n conj(a_rn) b_sn)``: (R, N) and (Q, N) to (R, Q)."""
    products = a_re[:, None, :] * b_re[None, :, :] + a_im[:, None, :] * b_im[None, :, :]
    return tl.sum(products, 2)


@triton.jit
def _mixed(weights, vectors):
    """``sum_s weights_rs vectors_s``: (R, Q) and (Q, N) to (R, N)."""
    return tl.sum(weights[:, :, None] * vectors[None, :, :], 1)


@triton.jit
def _product(a, b):
    """Of matrices (R, R), too small for tl.dot."""
    return tl.sum(a[:, :, None] * b[None, :, :], 1)


@triton.jit
def _inverse(matrix, rank, RANKS: tl.constexpr):
    """Of (RANKS, RANKS), where it is the identity beyond ``rank``: by Gauss and Jordan with pivots from the column."""
    j = tl.arange(0, RANKS)
    inverse = tl.where(j[:, None] == j[None, :], 1.0, 0.0).to(tl.float64)
    which = tl.where(j < rank, -1, j)  # the column that a row was the pivot of
    for r in range(rank):
        column = tl.sum(tl.where((j == r)[None, :], matrix, 0.0), 1)
        size = tl.where(which == -1, tl.abs(column), -1.0)
        first = tl.min(tl.where(size == tl.max(size, 0), j, RANKS), 0)
        chosen = j == first
        pivot = 1 / tl.sum(tl.where(chosen, column, 0.0), 0)
        row = tl.sum(tl.where(chosen[:, None], matrix, 0.0), 0) * pivot
        inverse_row = tl.sum(tl.where(chosen[:, None], inverse, 0.0), 0) * pivot
        matrix = tl.where(chosen[:, None], row[None, :], matrix - column[:, None] * row[None, :])
        inverse = tl.where(
            chosen[:, None], inverse_row[None, :], inverse - column[:, None] * inverse_row[None, :]
        )
        which = tl.where(chosen, r, which)
    return tl.sum(tl.where((which[None, :] == j[:, None])[:, :, None], inverse[None, :, :], 0.0), 1)


@triton.jit
def _model(w, p, b, dt, copies, N, rank, RANKS: tl.constexpr, PAIRS: tl.constexpr):
    """Of a head: w, p, b, g, g p, M, v, K and dt; vectors are rows."""
    h = tl.program_id(0).to(tl.int64)
    r, n = tl.arange(0, RANKS), tl.arange(0, PAIRS)[None, :]
    here = n < N
    at = (h % copies) * N + n
    ranks = (r < rank)[:, None] & here
    w_re, w_im = load(w, at, here)
    b_re, b_im = load(b, at, here)
    p_re, p_im = load(p, r.to(tl.int64)[:, None] * copies * N + at, ranks)
    step = tl.load(dt + h)
    g_re, g_im = 1 - step / 2 * w_re, step / 2 * w_im
    scale = 1 / (g_re * g_re + g_im * g_im)
    g_re, g_im = g_re * scale, g_im * scale
    gp_re, gp_im = multiply(g_re, g_im, p_re, p_im)
    gb_re, gb_im = multiply(g_re, g_im, b_re, b_im)
    small = 2 * _dots(p_re, p_im, gp_re, gp_im)
    v = 2 * tl.sum(p_re * gb_re + p_im * gb_im, 1)
    eye = tl.where(r[:, None] == r[None, :], 1.0, 0.0).to(tl.float64)
    inverse = _inverse(eye + step / 2 * small, rank, RANKS)
    return w_re, w_im, p_re, p_im, b_re, b_im, g_re, g_im, gp_re, gp_im, small, v, inverse, step


@triton.jit
def dplr_discretize_kernel(
    w, p, b, dt, a_minus_one, lift, pull, drive, heads, copies, N, rank, RANKS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """w, b (copies, N), p (rank, copies, N), dt (heads) -> a_minus_one, drive (heads, N), lift, pull (rank, heads, N)
    of a step.
    """
    w_re, w_im, p_re, p_im, b_re, b_im, g_re, g_im, gp_re, gp_im, _, v, inverse, step = _model(
        w, p, b, dt, copies, N, rank, RANKS, PAIRS
    )
    h = tl.program_id(0).to(tl.int64)
    r, n = tl.arange(0, RANKS), tl.arange(0, PAIRS)[None, :]
    here, at = n < N, h * N + n
    ranks, of_rank = (r < rank)[:, None] & here, r.to(tl.int64)[:, None] * heads * N + at
    re, im = multiply(step * w_re, step * w_im, g_re, g_im)
    store(a_minus_one, at, re, im, here)
    re, im = multiply(g_re, g_im, p_re, -p_im)
    store(pull, of_rank, re, im, ranks)
    re, im = _mixed(tl.trans(-step * inverse), gp_re), _mixed(tl.trans(-step * inverse), gp_im)
    store(lift, of_rank, re, im, ranks)
    drive_re, drive_im = multiply(step * g_re, step * g_im, b_re, b_im)
    drive_re += tl.sum(re * (step / 2 * v)[:, None], 0)[None, :]
    drive_im += tl.sum(im * (step / 2 * v)[:, None], 0)[None, :]
    store(drive, at, drive_re, drive_im, here)


@triton.jit
def dplr_discretize_backward_kernel(
    w, p, b, dt, g_a_minus_one, g_lift, g_pull, g_drive, dw, dp, db, d_dt, heads, copies, N, rank,
    RANKS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """What the kernel above takes, and the gradients of its results -> those of each head's w, p, b and dt: dw, db
    (heads, N), dp (rank, heads, N), d_dt (heads).
    """
    w_re, w_im, p_re, p_im, b_re, b_im, g_re, g_im, gp_re, gp_im, small, v, inverse, step = _model(
        w, p, b, dt, copies, N, rank, RANKS, PAIRS
    )
    h = tl.program_id(0).to(tl.int64)
    r, n = tl.arange(0, RANKS), tl.arange(0, PAIRS)[None, :]
    here, at = n < N, h * N + n
    ranks, of_rank = (r < rank)[:, None] & here, r.to(tl.int64)[:, None] * heads * N + at
    a_re, a_im = load(g_a_minus_one, at, here)
    drive_re, drive_im = load(g_drive, at, here)
    lift_re, lift_im = load(g_lift, of_rank, ranks)
    pull_re, pull_im = load(g_pull, of_rank, ranks)

    from_drive = tl.sum(gp_re * drive_re + gp_im * drive_im, 1)
    rho = -step * tl.sum(inverse * from_drive[:, None], 0)
    lift_re += (step / 2 * v)[:, None] * drive_re
    lift_im += (step / 2 * v)[:, None] * drive_im
    kappa = _dots(gp_re, gp_im, lift_re, lift_im)
    turned = tl.trans(inverse)
    g_small = step * _product(_product(turned, kappa), turned)
    pull_re += (step * rho)[:, None] * b_re
    pull_im -= (step * rho)[:, None] * b_im
    gp_bar_re = step * (_mixed(tl.trans(g_small), p_re) - _mixed(inverse, lift_re))
    gp_bar_im = step * (_mixed(tl.trans(g_small), p_im) - _mixed(inverse, lift_im))

    p_bar_re, p_bar_im = multiply(g_re, -g_im, gp_bar_re, gp_bar_im)
    more_re, more_im = multiply(g_re, g_im, pull_re, -pull_im)
    p_bar_re += more_re + step * _mixed(g_small, gp_re)
    p_bar_im += more_im + step * _mixed(g_small, gp_im)
    store(dp, of_rank, p_bar_re, p_bar_im, ranks)
    by_p_re = drive_re + tl.sum(rho[:, None] * p_re, 0)[None, :]
    by_p_im = drive_im + tl.sum(rho[:, None] * p_im, 0)[None, :]
    re, im = multiply(step * g_re, -step * g_im, by_p_re, by_p_im)
    store(db, at, re, im, here)

    re, im = multiply(w_re, -w_im, a_re, a_im)
    more_re, more_im = multiply(b_re, -b_im, drive_re, drive_im)
    g_bar_re, g_bar_im = step * (re + more_re), step * (im + more_im)
    re, im = multiply(p_re, -p_im, gp_bar_re, gp_bar_im)
    more_re, more_im = multiply(p_re, p_im, pull_re, pull_im)
    g_bar_re += tl.sum(re + more_re, 0)[None, :]
    g_bar_im += tl.sum(im + more_im, 0)[None, :]
    square_re, square_im = multiply(g_re, g_im, g_re, g_im)
    re, im = multiply(step * g_re, -step * g_im, a_re, a_im)
    more_re, more_im = multiply(step / 2 * square_re, -step / 2 * square_im, g_bar_re, g_bar_im)
    store(dw, at, re + more_re, im + more_im, here)

    wg_re, wg_im = multiply(w_re, w_im, g_re, g_im)
    gb_re, gb_im = multiply(g_re, g_im, b_re, b_im)
    ws_re, ws_im = multiply(w_re, w_im, square_re, square_im)
    pairs = wg_re * a_re + wg_im * a_im + gb_re * drive_re + gb_im * drive_im
    pairs += (ws_re * g_bar_re + ws_im * g_bar_im) / 2
    total = tl.sum(tl.sum(pairs, 1), 0) + tl.sum(v * rho, 0) / 2
    total += tl.sum(tl.sum(g_small * small / 2 - inverse * kappa, 1), 0)
    tl.store(d_dt + h, total)


def _block(rank: int, pairs: int) -> dict[str, int]:
    ranks, block = (triton.next_power_of_2(max(1, size)) for size in (rank, pairs))
    return {"RANKS": ranks, "PAIRS": block, "num_warps": max(1, min(8, ranks * ranks * block // 64))}


def dplr_discretize(w: Tensor, p: Tensor, b: Tensor, dt: Tensor, wide: bool) -> tuple[Tensor, ...]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.dplr_discretize``."""
    heads, (copies, pairs), rank = len(dt), w.shape, len(p)
    dtype = torch.complex128 if wide else torch.complex64
    shapes = ((heads, pairs), (rank, heads, pairs), (rank, heads, pairs), (heads, pairs))
    results = [w.new_empty(shape, dtype=dtype) for shape in shapes]
    if heads:
        dplr_discretize_kernel[(heads,)](
            *reals(w, p, b, dt, *results), heads, copies, pairs, rank, **_block(rank, pairs)
        )
    return tuple(results)


def dplr_discretize_backward(
    g_a: Tensor,
    g_p: Tensor,
    g_q: Tensor,
    g_b: Tensor,
    w: Tensor,
    p: Tensor,
    b: Tensor,
    dt: Tensor,
    wide: bool,
) -> tuple[Tensor, ...]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.dplr_discretize``."""
    heads, (copies, pairs), rank = len(dt), w.shape, len(p)
    dtype: Any = w.dtype if heads == copies else torch.complex128  # of each head, before they are added up
    results = [
        w.new_empty(shape, dtype=dtype) for shape in ((heads, pairs), (rank, heads, pairs), (heads, pairs))
    ]
    d_dt = torch.empty_like(dt, memory_format=torch.contiguous_format)
    if heads:
        dplr_discretize_backward_kernel[(heads,)](
            *reals(w, p, b, dt, g_a, g_p, g_q, g_b, *results, d_dt),
            heads,
            copies,
            pairs,
            rank,
            **_block(rank, pairs),
        )
    return *(of_copies(t, copies).to(w.dtype) for t in results), d_dt
