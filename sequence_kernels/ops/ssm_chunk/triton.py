"""Chunk matrices and their adjoint by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests).

A program has a head and all its sequences: states A^j b, readouts c A^j, pulls q_r A^j and lifts a^j p_r,

    V_{j+1} = a V_j + sum_r left_r s_rj,   s_rj = 2 Re(sum_n right_rn V_jn),

where (left, right) is (p, q) for the states, (q, p) for functionals, and 0 for the lifts. The powers are products of
pulls and lifts. Backwards, with l_j the whole gradient of V_j, and l_T = 0 where there is no V_T:

    t_rj = 2 Re(sum left_r* l_{j+1}),   l_j = g_j + a* l_{j+1} + sum_r right_r* t_rj,
    da = sum_j l_{j+1} V_j*,   dleft_r = sum_j s_rj l_{j+1},   dright_r = sum_j t_rj V_j*.

Sequences are in double; what is kept of them, and products of them, have the precision of c.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_complex import load, multiply, reals, store
from ..triton_registers import every_register

#: Rows and columns of a program's part of a product, and terms that it adds up at a time.
ROWS, COLUMNS, DEPTH = 32, 64, 16


@triton.jit
def _factors(p, q, h, heads, N, rank, channels, sequence, n, RANKS: tl.constexpr):
    """left and right (SEQUENCES, RANKS, PAIRS) of a head's sequences."""
    r = tl.arange(0, RANKS)
    at = ((r.to(tl.int64) * heads + h) * N)[:, None] + n[None, :]
    inside = (r < rank)[:, None] & (n < N)[None, :]
    p_re, p_im = load(p, at, inside)
    q_re, q_im = load(q, at, inside)
    states = (sequence == 0)[:, None, None]
    low_rank = tl.where(sequence <= channels + rank, 1.0, 0.0).to(tl.float64)[:, None, None]
    left_re = low_rank * tl.where(states, p_re[None, :, :], q_re[None, :, :])
    left_im = low_rank * tl.where(states, p_im[None, :, :], q_im[None, :, :])
    right_re = low_rank * tl.where(states, q_re[None, :, :], p_re[None, :, :])
    right_im = low_rank * tl.where(states, q_im[None, :, :], p_im[None, :, :])
    return left_re, left_im, right_re, right_im


@triton.jit
def _sums(right_re, right_im, v_re, v_im):
    return 2 * tl.sum(right_re * v_re[:, None, :] - right_im * v_im[:, None, :], 2)


@triton.jit
def _advance(a_re, a_im, left_re, left_im, sums, v_re, v_im):
    re, im = multiply(a_re, a_im, v_re, v_im)
    return re + tl.sum(left_re * sums[:, :, None], 1), im + tl.sum(left_im * sums[:, :, None], 1)


@triton.jit
def _of_states(sequence, x):
    """The first sequence's row (1, PAIRS)."""
    return tl.sum(tl.where((sequence == 0)[:, None], x, 0.0), 0)[None, :]


@triton.jit
def ssm_chunk_sequences_kernel(
    a, p, q, b, c, taps, reads, e_in, powers, values, heads, N, T, channels, rank, kept, count, doublings,
    SEQUENCES: tl.constexpr, RANKS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """a, b (heads, N), p, q (rank, heads, N), c (channels, heads, N) -> taps, reads, e_in and, of a diagonal model, its
    powers, which may be None; and the values (sequences - kept, heads, T, N) of all sequences but the first ones.
    """
    h = tl.program_id(0).to(tl.int64)
    sequence, n = tl.arange(0, SEQUENCES), tl.arange(0, PAIRS)
    here = (n < N)[None, :]
    of_c = (sequence > 0) & (sequence <= channels)
    of_q = (sequence > channels) & (sequence <= channels + rank)
    of_p = (sequence > channels + rank) & (sequence <= channels + 2 * rank)
    number = sequence.to(tl.int64)[:, None]
    left_re, left_im, right_re, right_im = _factors(p, q, h, heads, N, rank, channels, sequence, n, RANKS)
    a_re, a_im = load(a, h * N + n[None, :], here)
    b_re, b_im = load(b, h * N + n[None, :] + 0 * number, (sequence == 0)[:, None] & here)
    c_re, c_im = load(c, ((number - 1) * heads + h) * N + n[None, :], of_c[:, None] & here)
    q_re, q_im = load(q, ((number - 1 - channels) * heads + h) * N + n[None, :], of_q[:, None] & here)
    p_re, p_im = load(p, ((number - 1 - channels - rank) * heads + h) * N + n[None, :], of_p[:, None] & here)
    v_re, v_im = b_re + c_re + q_re + p_re, b_im + c_im + q_im + p_im
    is_kept = ((sequence >= kept) & (sequence <= channels + 2 * rank))[:, None] & here
    for j in range(T):
        store(values, (((number - kept) * heads + h) * T + j) * N + n[None, :], v_re, v_im, is_kept)
        if e_in is not None:
            at = (h * T + T - 1 - j) * N + n[None, :] + 0 * number
            store(e_in, at, v_re, v_im, (sequence == 0)[:, None] & here)
            x_re, x_im = _of_states(sequence, v_re), _of_states(sequence, v_im)
            tap = 2 * tl.sum(c_re * x_re - c_im * x_im, 1)
            at = ((sequence.to(tl.int64) - 1) * heads + h) * T + j
            tl.store(taps + at, tap.to(taps.dtype.element_ty), mask=of_c)
        sums = _sums(right_re, right_im, v_re, v_im)
        v_re, v_im = _advance(a_re, a_im, left_re, left_im, sums, v_re, v_im)
        if reads is not None:
            at = (((number - 1) * heads + h) * T + j) * N + n[None, :]
            store(reads, at, 2 * v_re, -2 * v_im, of_c[:, None] & here)
    if powers is not None:
        for i in range(doublings + 1):
            at = (h * count + count - 1 - doublings + i) * N + n[None, :]
            store(powers, at, a_re, a_im, here & (0 * n[None, :] + count - 1 - doublings + i >= 0))
            a_re, a_im = multiply(a_re, a_im, a_re, a_im)


@triton.jit
def ssm_chunk_powers_kernel(
    a, values, powers, heads, S, T, rank, count, doublings,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """a (heads, S / 2), values of pulls and lifts (2 rank, heads, T, S) -> powers (heads, count, S, S), in double.

    A program has ROWS rows and COLUMNS columns of one power.
    """
    dtype: tl.constexpr = values.dtype.element_ty
    across, down = tl.cdiv(S, COLUMNS), tl.cdiv(S, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)
    power = tl.program_id(0) // across // down % count
    h = (tl.program_id(0) // across // down // count).to(tl.int64)
    bit = doublings + 1 - count + power
    size = 1 << bit
    sums = tl.zeros((ROWS, COLUMNS), dtype)
    sign = tl.where(row % 2 == 0, 2.0, -2.0).to(dtype)
    for r in range(rank):
        pulls = values + (r * heads + h) * T * S
        lifts = values + ((rank + r) * heads + h) * T * S
        for first in range(0, size, DEPTH):
            j = first + tl.arange(0, DEPTH)
            inside = (row < S)[:, None] & (j < size)[None, :]
            pull = tl.load(pulls + j[None, :] * S + row[:, None], mask=inside, other=0.0)
            inside = (j < size)[:, None] & (column < S)[None, :]
            lift = tl.load(lifts + (size - 1 - j)[:, None] * S + column[None, :], mask=inside, other=0.0)
            sums = tl.dot(pull * sign[:, None], lift, sums, input_precision="ieee", out_dtype=dtype)
    a_re, a_im = load(a, h * (S // 2) + column // 2, column < S)
    for _ in range(bit):
        a_re, a_im = multiply(a_re, a_im, a_re, a_im)
    same, pair = row[:, None] == column[None, :], row[:, None] // 2 == (column // 2)[None, :]
    imaginary = tl.where(column % 2 == 0, -a_im, a_im)[None, :]
    turned = tl.where(same, a_re[None, :], tl.where(pair, imaginary, 0.0))
    at = powers + ((h * count + power) * S + row[:, None]) * S + column[None, :]
    tl.store(at, sums.to(tl.float64) + turned, mask=(row < S)[:, None] & (column < S)[None, :])


@triton.jit
def ssm_chunk_products_kernel(
    values, g_powers, out, heads, S, T, rank, count, doublings,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Values of pulls and lifts (2 rank, heads, T, S), gradients of the powers (heads, count, S, S) -> those of pulls
    and lifts (2 rank, heads, T, S).

    A program has ROWS elements and COLUMNS numbers of one of these sequences.
    """
    dtype: tl.constexpr = values.dtype.element_ty
    across, down = tl.cdiv(S, COLUMNS), tl.cdiv(T, ROWS)
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    j = tl.program_id(0) // across % down * ROWS + tl.arange(0, ROWS)
    sequence = tl.program_id(0) // across // down % (2 * rank)
    h = (tl.program_id(0) // across // down // (2 * rank)).to(tl.int64)
    pulls = sequence < rank
    other = tl.where(
        pulls, sequence + rank, sequence - rank
    )  # pulls are by lifts, and lifts by pulls, as rows
    from_row, from_column = tl.where(pulls, 1, S), tl.where(pulls, S, 1)
    given = values + (other * heads + h) * T * S
    sums = tl.zeros((ROWS, COLUMNS), dtype)
    for power in range(count):
        size = 1 << (doublings + 1 - count + power)
        g = g_powers + (h * count + power) * S * S
        for first in range(0, S, DEPTH):
            k = first + tl.arange(0, DEPTH)
            sign = tl.where(pulls, 1.0, tl.where(k % 2 == 0, 2.0, -2.0)).to(dtype)
            inside = (j < size)[:, None] & (k < S)[None, :]
            left = tl.load(given + (size - 1 - j)[:, None] * S + k[None, :], mask=inside, other=0.0)
            inside = (k < S)[:, None] & (column < S)[None, :]
            right = tl.load(g + k[:, None] * from_row + column[None, :] * from_column, mask=inside, other=0.0)
            sums = tl.dot(
                left * sign[None, :], right.to(dtype), sums, input_precision="ieee", out_dtype=dtype
            )
    sign = tl.where(pulls, tl.where(column % 2 == 0, 2.0, -2.0), 1.0).to(dtype)
    at = out + (sequence * heads + h) * T * S + j[:, None] * S + column[None, :]
    tl.store(at, sums * sign[None, :], mask=(j < T)[:, None] & (column < S)[None, :])


@triton.jit
def ssm_chunk_adjoint_kernel(
    a, p, q, c, g_taps, g_reads, g_e_in, g_powers, values, products, da, dp, dq, db, dc,
    heads, N, T, channels, rank, count, doublings, reads_channel, reads_head, reads_step, reads_state,
    SEQUENCES: tl.constexpr, RANKS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """The values (1 + channels + 2 rank, heads, T, N) of all sequences, the gradients of the results, and the products
    (2 rank, heads, T, N) that come from those of the powers -> da, db (heads, N), dp, dq (rank, heads, N), dc
    (channels, heads, N).
    """
    h = tl.program_id(0).to(tl.int64)
    sequence, r, n = tl.arange(0, SEQUENCES), tl.arange(0, RANKS), tl.arange(0, PAIRS)
    here = (n < N)[None, :]
    states = sequence == 0
    of_c = (sequence > 0) & (sequence <= channels)
    of_products = (sequence > channels) & (sequence <= channels + 2 * rank)
    number = sequence.to(tl.int64)[:, None]
    of_head = h * N + n[None, :]
    left_re, left_im, right_re, right_im = _factors(p, q, h, heads, N, rank, channels, sequence, n, RANKS)
    a_re, a_im = load(a, of_head, here)
    c_re, c_im = load(c, (number - 1) * heads * N + of_head, of_c[:, None] & here)

    # conjugates of l_j, which advance as functionals do where the sequence is of states, and the other way round
    l_re, l_im = _load_reads(
        g_reads, number, T - 1, h, n, reads_channel, reads_head, reads_step, reads_state, of_c, here
    )
    first_re = tl.zeros((SEQUENCES, PAIRS), tl.float64)  # what the taps give the readouts themselves
    first_im = tl.zeros((SEQUENCES, PAIRS), tl.float64)
    a_sum_re = tl.zeros((1, PAIRS), tl.float64)
    a_sum_im = tl.zeros((1, PAIRS), tl.float64)
    p_re = tl.zeros((RANKS, PAIRS), tl.float64)
    p_im = tl.zeros((RANKS, PAIRS), tl.float64)
    q_re = tl.zeros((RANKS, PAIRS), tl.float64)
    q_im = tl.zeros((RANKS, PAIRS), tl.float64)
    for step in range(T):
        j = T - 1 - step
        every = (sequence <= channels + 2 * rank)[:, None] & here
        v_re, v_im = load(values, ((number * heads + h) * T + j) * N + n[None, :], every)
        more_re, more_im = multiply(l_re, -l_im, v_re, -v_im)
        a_sum_re += tl.sum(more_re, 0)[None, :]
        a_sum_im += tl.sum(more_im, 0)[None, :]
        s, t = _sums(right_re, right_im, v_re, v_im), _sums(left_re, left_im, l_re, l_im)
        by_left_re, by_left_im = s[:, :, None] * l_re[:, None, :], -s[:, :, None] * l_im[:, None, :]
        by_right_re, by_right_im = t[:, :, None] * v_re[:, None, :], -t[:, :, None] * v_im[:, None, :]
        swap = states[:, None, None]
        p_re += tl.sum(tl.where(swap, by_left_re, by_right_re), 0)
        p_im += tl.sum(tl.where(swap, by_left_im, by_right_im), 0)
        q_re += tl.sum(tl.where(swap, by_right_re, by_left_re), 0)
        q_im += tl.sum(tl.where(swap, by_right_im, by_left_im), 0)
        l_re, l_im = _advance(a_re, a_im, right_re, right_im, t, l_re, l_im)

        tap = tl.load(g_taps + ((sequence.to(tl.int64) - 1) * heads + h) * T + j, mask=of_c, other=0.0)
        tap = tap.to(tl.float64)[:, None]
        first_re += 2 * tap * _of_states(sequence, v_re)
        first_im += 2 * tap * _of_states(sequence, v_im)
        g_re, g_im = load(g_e_in, (h * T + T - 1 - j) * N + n[None, :] + 0 * number, states[:, None] & here)
        l_re += g_re + tl.where(states[:, None], 2 * tl.sum(tap * c_re, 0)[None, :], 0.0)
        l_im += tl.where(states[:, None], 2 * tl.sum(tap * c_im, 0)[None, :], 0.0) - g_im
        of_read = of_c & (0 * sequence + j > 0)
        g_re, g_im = _load_reads(
            g_reads, number, j - 1, h, n, reads_channel, reads_head, reads_step, reads_state, of_read, here
        )
        l_re += g_re
        l_im += g_im
        at = (((number - 1 - channels) * heads + h) * T + j) * N + n[None, :]
        g_re, g_im = load(products, at, of_products[:, None] & here)
        l_re += g_re
        l_im -= g_im
    l_re += first_re
    l_im += first_im

    store(db, of_head + 0 * number, l_re, -l_im, states[:, None] & here)
    store(dc, (number - 1) * heads * N + of_head, l_re, -l_im, of_c[:, None] & here)
    of_rank = r[None, :] + 1 + channels
    pull, lift = (sequence[:, None] == of_rank)[:, :, None], (sequence[:, None] == of_rank + rank)[:, :, None]
    q_re += tl.sum(tl.where(pull, l_re[:, None, :], 0.0), 0)
    q_im -= tl.sum(tl.where(pull, l_im[:, None, :], 0.0), 0)
    p_re += tl.sum(tl.where(lift, l_re[:, None, :], 0.0), 0)
    p_im -= tl.sum(tl.where(lift, l_im[:, None, :], 0.0), 0)
    at = r.to(tl.int64)[:, None] * heads * N + of_head
    store(dp, at, p_re, p_im, (r < rank)[:, None] & here)
    store(dq, at, q_re, q_im, (r < rank)[:, None] & here)

    # of a^(2^i) in the powers: times (2^i a^(2^i - 1))*
    before_re, before_im = tl.zeros((1, PAIRS), tl.float64) + 1, tl.zeros((1, PAIRS), tl.float64)
    for i in range(doublings + 1):
        power = count - 1 - doublings + i
        given = here & (0 * n[None, :] + power >= 0)
        if rank == 0:
            g_re, g_im = load(g_powers, (h * count + power) * N + n[None, :], given)
        else:  # from the 2 x 2 blocks on the diagonal
            upper = ((h * count + power) * 2 * N + 2 * n[None, :]) * N + n[None, :]
            g_re, g_im = load(g_powers, upper, given)
            below_re, below_im = load(g_powers, upper + N, given)
            g_re, g_im = g_re + below_im, g_im - below_re
        g_re, g_im = multiply(g_re, g_im, before_re, -before_im)
        a_sum_re += g_re * (1 << i)
        a_sum_im += g_im * (1 << i)
        before_re, before_im = multiply(before_re, before_im, a_re, a_im)
        a_re, a_im = multiply(a_re, a_im, a_re, a_im)
    store(da, of_head, a_sum_re, a_sum_im, here)


@triton.jit
def _load_reads(g_reads, number, t, h, n, channel, head, step, state, of_c, here):
    """The conjugate of what element t of reads gives its functional, for those of the sequences that are readouts."""
    at = g_reads + (number - 1) * channel + h * head + t * step + 2 * n[None, :] * state
    mask = of_c[:, None] & here
    re, im = tl.load(at, mask=mask, other=0.0), tl.load(at + state, mask=mask, other=0.0)
    return 2 * re.to(tl.float64), 2 * im.to(tl.float64)


class _Layout:
    """Sizes of a call, and those of a program, powers of two."""

    def __init__(self, p: Tensor, c: Tensor, chunk: int, tail: bool) -> None:
        self.rank, (self.channels, self.heads, self.pairs), self.chunk = len(p), c.shape, chunk
        self.doublings = chunk.bit_length() - 1
        self.count = self.doublings + 1 if tail else 1
        self.sequences = 1 + self.channels + 2 * self.rank
        self.real = c.real.dtype

    def values(self, of: Tensor, sequences: int) -> Tensor:
        """Elements of so many sequences, uninitialised."""
        return of.new_empty((sequences, self.heads, self.chunk, 2 * self.pairs), dtype=self.real)

    def block(self, of_a_warp: int) -> dict[str, int]:
        """Of a program that has all sequences of a head, and a warp for so many factors."""
        sizes = [triton.next_power_of_2(max(1, x)) for x in (self.sequences, self.rank, self.pairs)]
        warps = max(1, min(8, sizes[0] * sizes[1] * sizes[2] // of_a_warp))
        return {**dict(zip(("SEQUENCES", "RANKS", "PAIRS"), sizes, strict=True)), "num_warps": warps}

    def products(self, rows: int) -> tuple[tuple[int], dict[str, int]]:
        """The grid of a product with so many rows of all powers, or of all pulls and lifts; and its block."""
        across = triton.cdiv(2 * self.pairs, COLUMNS)
        return (rows * across * self.heads,), {
            "ROWS": ROWS,
            "COLUMNS": COLUMNS,
            "DEPTH": DEPTH,
            "num_warps": 8,
        }


def ssm_chunk(
    a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, chunk: int, tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssm_chunk``."""
    layout = _Layout(p, c, chunk, tail)
    heads, size, rank, count = layout.heads, 2 * layout.pairs, layout.rank, layout.count
    taps = c.new_empty((layout.channels, heads, chunk), dtype=layout.real)
    reads, e_in = layout.values(c, layout.channels), layout.values(c, 1)[0]
    powers = (
        a.new_empty((heads, count, size, size), dtype=torch.float64)
        if rank
        else a.new_empty((heads, count, size // 2))
    )
    values = layout.values(c, 2 * rank)
    a, p, q, b, c = reals(a, p, q, b, c)
    if heads == 0:
        return taps, reads, e_in, powers
    ssm_chunk_sequences_kernel[(heads,)](
        a, p, q, b, c, taps, reads, e_in, None if rank else torch.view_as_real(powers), values,
        heads, layout.pairs, chunk, layout.channels, rank, 1 + layout.channels, count, layout.doublings,
        **layout.block(128),
    )  # fmt: skip
    if rank:
        grid, block = layout.products(triton.cdiv(size, ROWS) * count)
        ssm_chunk_powers_kernel[grid](
            a, values, powers, heads, size, chunk, rank, count, layout.doublings, **block
        )
    return taps, reads, e_in, powers


def ssm_chunk_backward(
    g_taps: Tensor,
    g_reads: Tensor,
    g_e_in: Tensor,
    g_powers: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    tail: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssm_chunk``."""
    layout = _Layout(p, c, chunk, tail)
    heads, size, rank, count = layout.heads, 2 * layout.pairs, layout.rank, layout.count
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (a, p, q, b, c)]
    values, products = layout.values(c, layout.sequences), layout.values(c, 2 * rank)
    g_taps, g_e_in, g_powers, a, p, q, b, c = reals(g_taps, g_e_in, g_powers, a, p, q, b, c)
    if heads == 0:
        da, dp, dq, db, dc = gradients
        return da, dp, dq, db, dc
    sizes: tuple[Any, ...] = (heads, layout.pairs, chunk, layout.channels, rank)
    ssm_chunk_sequences_kernel[(heads,)](
        a, p, q, b, c, None, None, None, None, values, *sizes, 0, count, layout.doublings, **layout.block(128)
    )
    if rank:
        grid, block = layout.products(triton.cdiv(chunk, ROWS) * 2 * rank)
        ssm_chunk_products_kernel[grid](
            values[1 + layout.channels :],
            g_powers,
            products,
            heads,
            size,
            chunk,
            rank,
            count,
            layout.doublings,
            **block,
            **every_register(),
        )
    ssm_chunk_adjoint_kernel[(heads,)](
        a, p, q, c, g_taps, g_reads, g_e_in, g_powers, values, products, *reals(*gradients),
        *sizes, count, layout.doublings, *g_reads.stride(),
        **layout.block(64), **every_register(),
    )  # fmt: skip
    da, dp, dq, db, dc = gradients
    return da, dp, dq, db, dc
