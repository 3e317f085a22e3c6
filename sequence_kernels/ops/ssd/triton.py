"""State-space duality by Triton kernels, for CUDA and HIP (interpreted in tests on the CPU); the adjoint: plain torch.

By chunks, as in reference.py: the states before them, one tile of a head's state a program, and then the outputs, one
chunk and one tile of a head's channels a program. Sums of dt a are taken in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from .reference import ssd_backward as ssd_backward


@triton.jit
def _steps(dt, a, batch, h, t, L, H):
    """dt of a chunk's elements, zeros behind the last, and the sums of dt a up to and with each, in float64."""
    step = tl.load(dt + (batch * L + t) * H + h, mask=t < L, other=0.0)
    exponent = step.to(tl.float64) * tl.load(a + h).to(tl.float64)
    return step, exponent, tl.cumsum(exponent, 0)


@triton.jit
def ssd_states_kernel(
    x, dt, a, b, initial, states, final, L, H, P, N, of_group, x_batch, x_step, x_head, b_batch, b_step, b_group,
    Q: tl.constexpr, P_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr,
):  # fmt: skip
    """x (B, L, H, P), dt (B, L, H), b (B, L, G, N), initial (B, H, P, N) -> states (B, M, H, P, N) and final."""
    real: tl.constexpr = dt.dtype.element_ty
    across, down, pid = tl.cdiv(N, N_BLOCK), tl.cdiv(P, P_BLOCK), tl.program_id(0)
    n = pid % across * N_BLOCK + tl.arange(0, N_BLOCK)[None, :]
    p = pid // across % down * P_BLOCK + tl.arange(0, P_BLOCK)[:, None]
    head = (pid // (across * down)).to(tl.int64)
    h, batch = head % H, head // H
    here, at, chunks = (p < P) & (n < N), p * N + n, tl.cdiv(L, Q)
    state = tl.zeros((P_BLOCK, N_BLOCK), real)
    if initial is not None:
        state += tl.load(initial + head * P * N + at, mask=here, other=0.0)
    for m in range(chunks):
        tl.store(states + ((batch * chunks + m) * H + h) * P * N + at, state, mask=here)
        t = m * Q + tl.arange(0, Q).to(tl.int64)
        step, exponent, sums = _steps(dt, a, batch, h, t, L, H)
        total = tl.sum(exponent, 0)
        weight = step * tl.exp((total - sums).to(real))
        inputs = x + batch * x_batch + h * x_head + t[None, :] * x_step + p
        inputs = tl.load(inputs, mask=(p < P) & (t[None, :] < L), other=0.0).to(real) * weight[None, :]
        rows = b + batch * b_batch + h // of_group * b_group + t[:, None] * b_step + n
        rows = tl.load(rows, mask=(t[:, None] < L) & (n < N), other=0.0).to(real)
        state = state * tl.exp(total.to(real))
        state = tl.dot(inputs, rows, state, input_precision="ieee", out_dtype=real)
    tl.store(final + head * P * N + at, state, mask=here)


@triton.jit
def ssd_outputs_kernel(
    x, dt, a, b, c, d, states, y, L, H, P, N, of_group,
    x_batch, x_step, x_head, b_batch, b_step, b_group, c_batch, c_step, c_group,
    Q: tl.constexpr, P_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr,
):  # fmt: skip
    """The same, c like b, d (H, P) and the states before each chunk -> y (B, L, H, P)."""
    real: tl.constexpr = dt.dtype.element_ty
    across, chunks, pid = tl.cdiv(P, P_BLOCK), tl.cdiv(L, Q), tl.program_id(0)
    p = pid % across * P_BLOCK + tl.arange(0, P_BLOCK)[None, :]
    chunk = (pid // across).to(tl.int64)
    h, m, batch = chunk % H, chunk // H % chunks, chunk // H // chunks
    t = m * Q + tl.arange(0, Q)
    step, _, sums = _steps(dt, a, batch, h, t, L, H)
    group = h // of_group
    scores, carried = tl.zeros((Q, Q), real), tl.zeros((Q, P_BLOCK), real)
    for first in range(0, N, N_BLOCK):
        n = first + tl.arange(0, N_BLOCK)
        rows = c + batch * c_batch + group * c_group + t[:, None] * c_step + n[None, :]
        rows = tl.load(rows, mask=(t[:, None] < L) & (n[None, :] < N), other=0.0).to(real)
        columns = b + batch * b_batch + group * b_group + t[None, :] * b_step + n[:, None]
        columns = tl.load(columns, mask=(t[None, :] < L) & (n[:, None] < N), other=0.0).to(real)
        scores = tl.dot(rows, columns, scores, input_precision="ieee", out_dtype=real)
        state = states + chunk * P * N + p * N + n[:, None]
        state = tl.load(state, mask=(p < P) & (n[:, None] < N), other=0.0)
        carried = tl.dot(rows, state, carried, input_precision="ieee", out_dtype=real)
    before = t[:, None] >= t[None, :]
    decay = tl.exp(tl.where(before, sums[:, None] - sums[None, :], 0.0).to(real))
    scores = tl.where(before, scores * decay * step[None, :], 0.0)
    here = (t[:, None] < L) & (p < P)
    inputs = tl.load(x + batch * x_batch + h * x_head + t[:, None] * x_step + p, mask=here, other=0.0).to(
        real
    )
    carried = carried * tl.exp(sums.to(real))[:, None]
    out = tl.dot(scores, inputs, carried, input_precision="ieee", out_dtype=real)
    if d is not None:
        out += inputs * tl.load(d + h * P + p, mask=p < P, other=0.0)
    tl.store(y + ((batch * L + t[:, None]) * H + h) * P + p, out.to(y.dtype.element_ty), mask=here)


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else plain(t)


def _plain(t: Any) -> Any:
    return None if t is None else plain(t)


def ssd(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssd``."""
    batch, length, heads, width = x.shape
    groups, size = b.shape[2:]
    wide = a.dtype == torch.float64  # larger tiles spill
    block = {"Q": 16 if wide else 32, "P_BLOCK": 16 if wide else 32}
    chunks, down = triton.cdiv(length, block["Q"]), triton.cdiv(width, block["P_BLOCK"])
    x, b, c, dt, a = _rows(x), _rows(b), _rows(c), plain(dt), plain(a)
    d, initial_state = _plain(d), _plain(initial_state)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    states = a.new_empty((batch, chunks, heads, width, size))
    final_state = a.new_empty((batch, heads, width, size))
    sizes = (length, heads, width, size, heads // max(groups, 1))
    if final_state.numel():
        ssd_states_kernel[(batch * heads * down * triton.cdiv(size, block["P_BLOCK"]),)](
            x, dt, a, b, initial_state, states, final_state, *sizes, *x.stride()[:3], *b.stride()[:3],
            **block, N_BLOCK=block["P_BLOCK"],
        )  # fmt: skip
    if y.numel():
        ssd_outputs_kernel[(batch * chunks * heads * down,)](
            x, dt, a, b, c, d, states, y, *sizes, *(s for t in (x, b, c) for s in t.stride()[:3]),
            **block, N_BLOCK=16, num_warps=4 if wide else 8,
        )  # fmt: skip
    return y, final_state
