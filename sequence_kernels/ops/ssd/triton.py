"""State-space duality and its adjoint by Triton kernels, for CUDA and HIP (interpreted in tests on the CPU).

By chunks, as in reference.py, whose names and formulas these are. First the states before them and, backwards, the
gradients G' of those behind them, one tile of a head's state a program; then what a chunk gives, one tile of a head's
channels or of its states a program. Sums of dt a are taken in float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain


@triton.jit
def _steps(dt, a, batch, h, t, L, H):
    """dt of a chunk's elements, zeros behind the last, and the sums of dt a up to and with each, in float64."""
    step = tl.load(dt + (batch * L + t) * H + h, mask=t < L, other=0.0)
    exponent = step.to(tl.float64) * tl.load(a + h).to(tl.float64)
    return step, exponent, tl.cumsum(exponent, 0)


@triton.jit
def _of_rows(data, t, column, batch, head, L, columns, batch_stride, step, head_stride, real: tl.constexpr):
    """Elements (t, column) of a head of a sequence, zeros outside."""
    at = data + batch * batch_stride + head * head_stride + t * step + column
    return tl.load(at, mask=(t < L) & (column < columns), other=0.0).to(real)


@triton.jit
def ssd_states_kernel(
    x, dt, a, b, initial, states, final, L, H, P, N, of_group, x_batch, x_step, x_head, b_batch, b_step, b_group,
    REVERSE: tl.constexpr, Q: tl.constexpr, P_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr,
):  # fmt: skip
    """x (B, L, H, P), dt (B, L, H), b (B, L, G, N), initial (B, H, P, N) -> states (B, M, H, P, N) and final.

    REVERSE: g, dt, c and the gradient of the final state -> G' of each chunk, and the gradient of the initial state.
    """
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
    for turn in range(chunks):
        m = chunks - 1 - turn if REVERSE else turn
        tl.store(states + ((batch * chunks + m) * H + h) * P * N + at, state, mask=here)
        t = m * Q + tl.arange(0, Q).to(tl.int64)
        step, exponent, sums = _steps(dt, a, batch, h, t, L, H)
        total = tl.sum(exponent, 0)
        weight = tl.exp(sums.to(real)) if REVERSE else step * tl.exp((total - sums).to(real))
        inputs = _of_rows(x, t[None, :], p, batch, h, L, P, x_batch, x_step, x_head, real) * weight[None, :]
        rows = _of_rows(b, t[:, None], n, batch, h // of_group, L, N, b_batch, b_step, b_group, real)
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
        rows = _of_rows(c, t[:, None], n[None, :], batch, group, L, N, c_batch, c_step, c_group, real)
        columns = _of_rows(b, t[None, :], n[:, None], batch, group, L, N, b_batch, b_step, b_group, real)
        scores = tl.dot(rows, columns, scores, input_precision="ieee", out_dtype=real)
        state = states + chunk * P * N + p * N + n[:, None]
        state = tl.load(state, mask=(p < P) & (n[:, None] < N), other=0.0)
        carried = tl.dot(rows, state, carried, input_precision="ieee", out_dtype=real)
    before = t[:, None] >= t[None, :]
    decay = tl.exp(tl.where(before, sums[:, None] - sums[None, :], 0.0).to(real))
    scores = tl.where(before, scores * decay * step[None, :], 0.0)
    inputs = _of_rows(x, t[:, None], p, batch, h, L, P, x_batch, x_step, x_head, real)
    carried = carried * tl.exp(sums.to(real))[:, None]
    out = tl.dot(scores, inputs, carried, input_precision="ieee", out_dtype=real)
    if d is not None:
        out += inputs * tl.load(d + h * P + p, mask=p < P, other=0.0)
    here = (t[:, None] < L) & (p < P)
    tl.store(y + ((batch * L + t[:, None]) * H + h) * P + p, out.to(y.dtype.element_ty), mask=here)


@triton.jit
def ssd_inputs_kernel(
    g, x, dt, a, b, c, d, after, dx, slopes, steps, skips, L, H, P, N, of_group,
    g_batch, g_step, g_head, x_batch, x_step, x_head, b_batch, b_step, b_group, c_batch, c_step, c_group,
    Q: tl.constexpr, P_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr,
):  # fmt: skip
    """What depends on all states, of a chunk's tile of channels: dx like x; parts (B, M, H, P) of dd; and of each tile
    slopes (B, L, H), the gradient of dt in dt x, and steps, that of dt a in what the chunk leaves for G'."""
    real: tl.constexpr = dt.dtype.element_ty
    across, chunks, pid = tl.cdiv(P, P_BLOCK), tl.cdiv(L, Q), tl.program_id(0)
    tile = pid % across
    p = tile * P_BLOCK + tl.arange(0, P_BLOCK)[None, :]
    chunk = (pid // across).to(tl.int64)
    h, m, batch = chunk % H, chunk // H % chunks, chunk // H // chunks
    t = m * Q + tl.arange(0, Q)
    step, exponent, sums = _steps(dt, a, batch, h, t, L, H)
    group = h // of_group
    products, kept = tl.zeros((Q, Q), real), tl.zeros((Q, P_BLOCK), real)  # of (s, t)
    for first in range(0, N, N_BLOCK):
        n = first + tl.arange(0, N_BLOCK)
        rows = _of_rows(b, t[:, None], n[None, :], batch, group, L, N, b_batch, b_step, b_group, real)
        columns = _of_rows(c, t[None, :], n[:, None], batch, group, L, N, c_batch, c_step, c_group, real)
        products = tl.dot(rows, columns, products, input_precision="ieee", out_dtype=real)
        state = after + chunk * P * N + p * N + n[:, None]
        state = tl.load(state, mask=(p < P) & (n[:, None] < N), other=0.0)
        kept = tl.dot(rows, state, kept, input_precision="ieee", out_dtype=real)
    behind = t[None, :] >= t[:, None]
    decay = tl.exp(tl.where(behind, sums[None, :] - sums[:, None], 0.0).to(real))
    weights = tl.where(behind, products * decay, 0.0)
    kept = kept * tl.exp((tl.sum(exponent, 0) - sums).to(real))[:, None]
    gradient = _of_rows(g, t[:, None], p, batch, h, L, P, g_batch, g_step, g_head, real)
    d_inputs = tl.dot(weights, gradient, kept, input_precision="ieee", out_dtype=real)
    inputs = _of_rows(x, t[:, None], p, batch, h, L, P, x_batch, x_step, x_head, real)
    out = d_inputs * step[:, None]
    if d is not None:
        out += gradient * tl.load(d + h * P + p, mask=p < P, other=0.0)
    here = (t[:, None] < L) & (p < P)
    tl.store(dx + ((batch * L + t[:, None]) * H + h) * P + p, out.to(dx.dtype.element_ty), mask=here)
    tl.store(skips + chunk * P + p, tl.sum(gradient * inputs, 0)[None, :], mask=p < P)
    at = ((tile * (tl.num_programs(0) // (across * chunks * H)) + batch) * L + t) * H + h
    tl.store(slopes + at, tl.sum(inputs * d_inputs, 1), mask=t < L)
    left = tl.sum(inputs * kept, 1) * step
    # Not a sum less its last, which would be noise.
    earlier = tl.where(t[None, :] < t[:, None], left[None, :], 0.0)
    tl.store(steps + at, tl.sum(earlier, 1), mask=t < L)


@triton.jit
def ssd_matrices_kernel(
    g, x, dt, a, b, c, states, after, db, dc, steps, L, H, P, N, of_group,
    g_batch, g_step, g_head, x_batch, x_step, x_head, b_batch, b_step, b_group, c_batch, c_step, c_group,
    Q: tl.constexpr, P_BLOCK: tl.constexpr, N_BLOCK: tl.constexpr,
):  # fmt: skip
    """What depends on all channels, of a chunk's tile of states: a head's db and dc (B, L, H, N); and of each tile
    steps (B, L, H), the rest of the gradient of dt a."""
    real: tl.constexpr = dt.dtype.element_ty
    across, chunks, pid = tl.cdiv(N, N_BLOCK), tl.cdiv(L, Q), tl.program_id(0)
    tile = pid % across
    n = tile * N_BLOCK + tl.arange(0, N_BLOCK)[None, :]
    chunk = (pid // across).to(tl.int64)
    h, m, batch = chunk % H, chunk // H % chunks, chunk // H // chunks
    t = m * Q + tl.arange(0, Q)
    step, exponent, sums = _steps(dt, a, batch, h, t, L, H)
    group, total = h // of_group, tl.sum(exponent, 0)
    paired, read = tl.zeros((Q, Q), real), tl.zeros((Q, N_BLOCK), real)
    left, through = tl.zeros((Q, N_BLOCK), real), tl.zeros((P_BLOCK, N_BLOCK), real)
    for first in range(0, P, P_BLOCK):
        p = first + tl.arange(0, P_BLOCK)
        gradient = _of_rows(g, t[:, None], p[None, :], batch, h, L, P, g_batch, g_step, g_head, real)
        inputs = _of_rows(x, t[:, None], p[None, :], batch, h, L, P, x_batch, x_step, x_head, real)
        inputs = inputs * step[:, None]
        paired = tl.dot(gradient, tl.trans(inputs), paired, input_precision="ieee", out_dtype=real)
        at = chunk * P * N + p[:, None] * N + n
        here = (p[:, None] < P) & (n < N)
        state, later = tl.load(states + at, mask=here, other=0.0), tl.load(after + at, mask=here, other=0.0)
        read = tl.dot(gradient, state, read, input_precision="ieee", out_dtype=real)
        left = tl.dot(inputs, later, left, input_precision="ieee", out_dtype=real)
        through += state * later
    before = t[:, None] >= t[None, :]
    decay = tl.exp(tl.where(before, sums[:, None] - sums[None, :], 0.0).to(real))
    paired = tl.where(before, paired * decay, 0.0)
    inward = _of_rows(b, t[:, None], n, batch, group, L, N, b_batch, b_step, b_group, real)
    outward = _of_rows(c, t[:, None], n, batch, group, L, N, c_batch, c_step, c_group, real)
    read = read * tl.exp(sums.to(real))[:, None]
    left = left * tl.exp((total - sums).to(real))[:, None]
    here, at = (t[:, None] < L) & (n < N), ((batch * L + t[:, None]) * H + h) * N + n
    tl.store(dc + at, tl.dot(paired, inward, read, input_precision="ieee", out_dtype=real), mask=here)
    tl.store(
        db + at, tl.dot(tl.trans(paired), outward, left, input_precision="ieee", out_dtype=real), mask=here
    )
    products = tl.dot(outward, tl.trans(inward), input_precision="ieee", out_dtype=real)
    crossed = tl.where(t[:, None] > t[None, :], products * paired, 0.0)
    from_here = tl.sum(crossed, 1) - tl.sum(crossed, 0) + tl.sum(outward * read, 1)
    later_too = tl.sum(tl.where(t[None, :] >= t[:, None], from_here[None, :], 0.0), 1)
    found = later_too + tl.exp(total.to(real)) * tl.sum(tl.sum(through, 1), 0)
    batches = tl.num_programs(0) // (across * chunks * H)
    tl.store(steps + ((tile * batches + batch) * L + t) * H + h, found, mask=t < L)


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else plain(t)


def _plain(t: Any) -> Any:
    return None if t is None else plain(t)


class _Call:
    """What both passes take, as the kernels read it, and where they run."""

    def __init__(
        self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, initial: Tensor | None
    ) -> None:
        self.x, self.b, self.c, self.dt, self.a = _rows(x), _rows(b), _rows(c), plain(dt), plain(a)
        self.d, self.initial = _plain(d), _plain(initial)
        self.batch, self.length, self.heads, self.width = x.shape
        self.groups, self.size = b.shape[2:]
        self.wide = a.dtype == torch.float64  # larger tiles spill
        self.block = {"Q": 16 if self.wide else 32, "P_BLOCK": 16 if self.wide else 32}
        self.chunks = triton.cdiv(self.length, self.block["Q"])
        self.down = triton.cdiv(self.width, self.block["P_BLOCK"])
        of_group = self.heads // max(self.groups, 1)
        self.sizes = (self.length, self.heads, self.width, self.size, of_group)

    def states(self, x: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
        """(B, M, H, P, N) before each chunk, or in reverse the gradients behind it, and what is left at the end."""
        shape = (self.batch, self.heads, self.width, self.size)
        states, final = self.a.new_empty((shape[0], self.chunks, *shape[1:])), self.a.new_empty(shape)
        if final.numel():
            tiles = self.down * triton.cdiv(self.size, self.block["P_BLOCK"])
            ssd_states_kernel[(self.batch * self.heads * tiles,)](
                x, self.dt, self.a, b, initial, states, final, *self.sizes, *_strides(x, b),
                REVERSE=reverse, **self.block, N_BLOCK=self.block["P_BLOCK"],
            )  # fmt: skip
        return states, final


def _strides(*sequences: Tensor) -> list[int]:
    return [stride for t in sequences for stride in t.stride()[:3]]


def ssd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssd``."""
    of = _Call(*arguments)
    y = torch.empty_like(of.x, memory_format=torch.contiguous_format)
    states, final_state = of.states(of.x, of.b, of.initial, reverse=False)
    if y.numel():
        ssd_outputs_kernel[(of.batch * of.chunks * of.heads * of.down,)](
            of.x, of.dt, of.a, of.b, of.c, of.d, states, y, *of.sizes, *_strides(of.x, of.b, of.c),
            **of.block, N_BLOCK=16, num_warps=4 if of.wide else 8,
        )  # fmt: skip
    return y, final_state


def ssd_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The adjoint: a chunk's gradients of b and c are made for each head, and added up over those of a group."""
    of = _Call(*arguments)
    g, batch, heads = _rows(g), of.batch, of.heads
    states, _ = of.states(of.x, of.b, of.initial, reverse=False)
    after, d_initial = of.states(g, of.c, plain(g_final.to(of.a.dtype)), reverse=True)
    across = triton.cdiv(of.size, 16)
    dx = torch.empty_like(of.x, memory_format=torch.contiguous_format)
    skips = of.a.new_empty((batch, of.chunks, heads, of.width))
    slopes = of.a.new_empty((of.down, *of.dt.shape))
    steps = of.a.new_empty((of.down + across, *of.dt.shape))
    db, dc = (of.a.new_empty((batch, of.length, heads, of.size)) for _ in "bc")
    common = (*of.sizes, *_strides(g, of.x, of.b, of.c))
    programs, options = batch * of.chunks * heads, {"N_BLOCK": 16, "num_warps": 4 if of.wide else 8}
    if dx.numel():
        ssd_inputs_kernel[(programs * of.down,)](
            g, of.x, of.dt, of.a, of.b, of.c, of.d, after, dx, slopes, steps, skips, *common, **of.block, **options
        )  # fmt: skip
    if db.numel():
        ssd_matrices_kernel[(programs * across,)](
            g, of.x, of.dt, of.a, of.b, of.c, states, after, db, dc, steps[of.down :], *common,
            Q=of.block["Q"], P_BLOCK=16, **options,
        )  # fmt: skip
    d_steps = steps.sum(0)

    def by_group(t: Tensor) -> Tensor:
        return t.unflatten(2, (of.groups, heads // max(of.groups, 1))).sum(3).to(of.b.dtype)

    return (
        dx,
        slopes.sum(0) + of.a * d_steps,
        (of.dt * d_steps).sum((0, 1)),
        by_group(db),
        by_group(dc),
        skips.sum((0, 1)),
        d_initial,
    )
