"""The recurrent steps by a Triton kernel, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU).

s_r = 2 Re(sum_n q_rn x_n),  x' = x + ((a - 1) x + sum_r p_r s_r + b u),  y_c = 2 Re(sum_n c_cn x'_n) + d_c u
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import steps

#: Programs of 8 rows from which on each has 32 instead, for which it reads the parameters once.
ENOUGH = 16384


@triton.jit
def _complex(pointer, row, n, mask):
    """Complex numbers n of rows that begin at the elements ``row``: real and imaginary parts."""
    pairs = tl.arange(0, 2)
    at = pointer + 2 * (row + n)[:, :, None] + pairs[None, None, :]
    return tl.split(tl.load(at, mask=mask[:, :, None], other=0.0))


@triton.jit
def ssm_step_kernel(
    state, following, state_indices, u, a_minus_one, b, c, d, p, q, y, rows, slots, heads, N, channels, rank,
    ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """States (slots, heads, N), u (rows, heads) -> y (rows, channels, heads); complex ones as pairs of reals.

    A program steps one head of ROWS rows. A row whose slot is -1 gives 0, one whose slot does not exist NaN.
    """
    dtype: tl.constexpr = y.dtype.element_ty
    h = (tl.program_id(0) % heads).to(tl.int64)
    row = (tl.program_id(0) // heads).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = row if state_indices is None else tl.load(state_indices + row, mask=row < rows, other=-1)
    busy = (row < rows) & (slot >= 0) & (slot < slots)
    n = tl.arange(0, PAIRS)[None, :]
    here = n < N
    base = (tl.where(busy, slot, 0) * heads + h)[:, None] * N
    mine = busy[:, None] & here
    x_re, x_im = _complex(state, base, n, mine)
    drive = tl.load(u + row * heads + h, mask=busy, other=0.0)
    poles = tl.zeros((1, 1), tl.int64) + h * N
    size = tl.zeros((1, 1), tl.int64) + heads * N  # of one rank, or one channel
    a_re, a_im = _complex(a_minus_one, poles, n, here)
    b_re, b_im = _complex(b, poles, n, here)
    moved_re = a_re * x_re - a_im * x_im + b_re * drive[:, None]
    moved_im = a_re * x_im + a_im * x_re + b_im * drive[:, None]
    for r in range(rank):
        q_re, q_im = _complex(q, poles + r * size, n, here)
        p_re, p_im = _complex(p, poles + r * size, n, here)
        pull = 2 * tl.sum(q_re * x_re - q_im * x_im, 1)[:, None]
        moved_re += p_re * pull
        moved_im += p_im * pull
    new_re, new_im = x_re + moved_re, x_im + moved_im  # once, and last
    to = following + 2 * (base + n)[:, :, None] + tl.arange(0, 2)[None, None, :]
    tl.store(to, tl.join(new_re, new_im), mask=mine[:, :, None])
    idle = tl.where(slot == -1, 0.0, float("nan")).to(dtype)
    for channel in range(channels):
        c_re, c_im = _complex(c, poles + channel * size, n, here)
        output = 2 * tl.sum(tl.where(mine, c_re * new_re - c_im * new_im, 0.0), 1)
        if d is not None:
            output += tl.load(d + channel * heads + h) * drive
        tl.store(y + (row * channels + channel) * heads + h, tl.where(busy, output, idle), mask=row < rows)


def kernel(
    state: Tensor,
    state_indices: Tensor | None,
    u: Tensor,
    a_minus_one: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
    next_state: Tensor,
) -> Tensor:
    """The step of ``kernels.Kernel``."""
    heads, pairs = a_minus_one.shape
    channels, rows = len(c), math.prod(u.shape[:-1])
    y = u.new_empty((*u.shape[:-1], channels, heads))
    if rows and heads:
        block = triton.next_power_of_2(max(1, pairs))
        together = 1 if rows == 1 else 8
        if block <= 64 and triton.cdiv(rows, 8) * heads >= ENOUGH:  # of more pairs registers would not do
            together = 32
        p, q, rank = (a_minus_one, a_minus_one, 0) if p is None or q is None else (p, q, len(p))
        ssm_step_kernel[(triton.cdiv(rows, together) * heads,)](
            torch.view_as_real(state), torch.view_as_real(next_state), state_indices, u,
            *(torch.view_as_real(t) for t in (a_minus_one, b, c)), d, torch.view_as_real(p), torch.view_as_real(q), y,
            rows, math.prod(state.shape[:-2]), heads, pairs, channels, rank,
            ROWS=together, PAIRS=block, num_warps=max(1, min(8, together * block // 256)),
        )  # fmt: skip
    return y


ssm_step, ssm_step_ = steps(kernel)
