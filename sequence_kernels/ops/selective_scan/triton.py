"""The selective scan and its adjoint by Triton kernels, for CUDA and HIP (interpreted in tests on the CPU).

Real a; b and c with groups, constant ones as if they were of every element. By chunks of 64 elements, all of whose
states are found at once by a scan over pairs of a decay and what is added. Forwards a program takes some channels
through all chunks. Backwards the gradients behind each chunk come first, chunk by chunk; then a program has a chunk
and, some at a time, a part of the channels of a group, so that nothing is larger than 1 / 64 of all states. All else
is left to plain torch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from ..triton_exponentials import exponential, logistic, softplus
from ..triton_registers import every_register
from . import reference
from .reference import CHUNK, absent

#: Entries of a state that a program holds, with all elements of a chunk; more spill.
MOST_ENTRIES = {torch.float32: 32, torch.float64: 4}
#: Channels of a group that one program of the last launch goes through.
SPAN = 64


@triton.jit
def _after_another(first, first_added, second, second_added):
    return first * second, second * first_added + second_added


@triton.jit
def _of_sequence(data, batch, t, d, there, batch_stride, step, channel, real: tl.constexpr):
    """Elements t (T, 1) of channels d (1, D), zeros where there are none."""
    return tl.load(data + batch * batch_stride + t * step + d * channel, mask=there, other=0.0).to(real)


@triton.jit
def _time_steps(
    delta, bias, batch, t, d, there, batch_stride, step, channel,
    SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, real: tl.constexpr,
):  # fmt: skip
    """delta + bias, dt before it is limited, and dt, which is 0 where there is no element."""
    x = _of_sequence(delta, batch, t, d, there, batch_stride, step, channel, real)
    if bias is not None:
        x += tl.load(bias + d, mask=there, other=0.0)
    free = x
    if SOFTPLUS:
        free = softplus(x)
    dt = tl.where(free < LEAST, tl.full(free.shape, LEAST, real), free)
    dt = tl.where(dt > MOST, tl.full(free.shape, MOST, real), dt)
    return x, free, tl.where(there, dt, 0.0)


@triton.jit
def _gated(
    g, z, batch, t, d, there, g_batch, g_step, g_channel, z_batch, z_step, z_channel, real: tl.constexpr
):
    """The gradient of y before the gate."""
    gradient = _of_sequence(g, batch, t, d, there, g_batch, g_step, g_channel, real)
    if z is not None:
        gate = _of_sequence(z, batch, t, d, there, z_batch, z_step, z_channel, real)
        gradient = gradient * gate * logistic(gate)
    return gradient


@triton.jit
def selective_scan_kernel(
    u, delta, a, b, c, d, z, bias, initial, y, final, states, L, D, N, of_group, chunks,
    u_batch, u_step, u_channel, delta_batch, delta_step, delta_channel, z_batch, z_step, z_channel,
    b_batch, b_step, b_group, c_batch, c_step, c_group,
    SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    T: tl.constexpr, CHANNELS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """u, delta, z (B, L, D), b, c (B, L, G, N), initial (B, D, N) -> y, final, and states (B, chunks, N, D) before
    each chunk."""
    real: tl.constexpr = a.dtype.element_ty
    across = tl.cdiv(D, CHANNELS)
    batch = (tl.program_id(0) // across).to(tl.int64)
    channel = tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, ENTRIES)
    row, entry = channel[:, None], n[None, :]
    mine = (row < D) & (entry < N)
    rate = tl.load(a + row * N + entry, mask=mine, other=0.0)
    state = tl.zeros((CHANNELS, ENTRIES), real)
    if initial is not None:
        state += tl.load(initial + (batch * D + row) * N + entry, mask=mine, other=0.0)
    wide, last = channel[None, :], tl.arange(0, T)[:, None, None] == T - 1
    groups = (channel // of_group)[None, :, None]
    for m in range(chunks):
        tl.store(states + ((batch * chunks + m) * N + entry) * D + row, state, mask=mine)
        t = m * T + tl.arange(0, T).to(tl.int64)
        there = (t[:, None] < L) & (wide < D)
        given = _of_sequence(u, batch, t[:, None], wide, there, u_batch, u_step, u_channel, real)
        _, _, dt = _time_steps(
            delta, bias, batch, t[:, None], wide, there, delta_batch, delta_step, delta_channel,
            SOFTPLUS, LEAST, MOST, real,
        )  # fmt: skip
        inside = there[:, :, None] & (n[None, None, :] < N)
        at = t[:, None, None] * b_step + groups * b_group + n[None, None, :]
        inputs = tl.load(b + batch * b_batch + at, mask=inside, other=0.0).to(real)
        at = t[:, None, None] * c_step + groups * c_group + n[None, None, :]
        readout = tl.load(c + batch * c_batch + at, mask=inside, other=0.0).to(real)
        decays = exponential(dt[:, :, None] * rate[None, :, :])
        left, added = tl.associative_scan((decays, (dt * given)[:, :, None] * inputs), 0, _after_another)
        h = left * state[None, :, :] + added
        state = tl.sum(tl.where(last, h, 0.0), 0)
        out = tl.sum(readout * h, 2)
        if d is not None:
            out += tl.load(d + wide, mask=wide < D, other=0.0) * given
        if z is not None:
            gate = _of_sequence(z, batch, t[:, None], wide, there, z_batch, z_step, z_channel, real)
            out = out * gate * logistic(gate)
        tl.store(y + (batch * L + t[:, None]) * D + wide, out.to(y.dtype.element_ty), mask=there)
    tl.store(final + (batch * D + row) * N + entry, state, mask=mine)


@triton.jit
def selective_scan_adjoint_kernel(
    g, delta, a, c, z, bias, g_final, after, d_initial, L, D, N, of_group, chunks,
    g_batch, g_step, g_channel, delta_batch, delta_step, delta_channel, z_batch, z_step, z_channel,
    c_batch, c_step, c_group,
    SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    T: tl.constexpr, CHANNELS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """The gradients of the states behind each chunk, like states, and of the initial one."""
    real: tl.constexpr = a.dtype.element_ty
    across = tl.cdiv(D, CHANNELS)
    batch = (tl.program_id(0) // across).to(tl.int64)
    channel = tl.program_id(0) % across * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, ENTRIES)
    row, entry = channel[:, None], n[None, :]
    mine = (row < D) & (entry < N)
    rate = tl.load(a + row * N + entry, mask=mine, other=0.0)
    gradient = tl.load(g_final + (batch * D + row) * N + entry, mask=mine, other=0.0)
    wide, groups = channel[None, :], (channel // of_group)[None, :, None]
    for turn in range(chunks):
        m = chunks - 1 - turn
        tl.store(after + ((batch * chunks + m) * N + entry) * D + row, gradient, mask=mine)
        t = m * T + tl.arange(0, T).to(tl.int64)
        there = (t[:, None] < L) & (wide < D)
        _, _, dt = _time_steps(
            delta, bias, batch, t[:, None], wide, there, delta_batch, delta_step, delta_channel,
            SOFTPLUS, LEAST, MOST, real,
        )  # fmt: skip
        gy = _gated(
            g, z, batch, t[:, None], wide, there, g_batch, g_step, g_channel, z_batch, z_step, z_channel, real
        )
        inside = there[:, :, None] & (n[None, None, :] < N)
        at = t[:, None, None] * c_step + groups * c_group + n[None, None, :]
        readout = tl.load(c + batch * c_batch + at, mask=inside, other=0.0).to(real)
        since = exponential(tl.cumsum(dt, 0)[:, :, None] * rate[None, :, :])
        gradient = gradient * exponential(tl.sum(dt, 0)[:, None] * rate)
        gradient += tl.sum(since * gy[:, :, None] * readout, 0)
    tl.store(d_initial + (batch * D + row) * N + entry, gradient, mask=mine)


@triton.jit
def selective_scan_gradients_kernel(
    g, u, delta, a, b, c, d, z, bias, states, after, du, d_delta, dz, da, dd, d_bias, db, dc,
    L, D, N, of_group, chunks, slices, span,
    g_batch, g_step, g_channel, u_batch, u_step, u_channel, delta_batch, delta_step, delta_channel,
    z_batch, z_step, z_channel, b_batch, b_step, b_group, c_batch, c_step, c_group,
    SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    T: tl.constexpr, CHANNELS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """du, d_delta, dz (B, L, D); parts of each chunk: da (B, chunks, D, N), dd, d_bias (B, chunks, D); of each slice of
    a group's channels: db, dc (slices, B, L, G, N)."""
    real: tl.constexpr = a.dtype.element_ty
    of_all, pid = D // of_group, tl.program_id(0)
    piece, group = pid % slices, pid // slices % of_all
    chunk = (pid // (slices * of_all)).to(tl.int64)
    m, batch = chunk % chunks, chunk // chunks
    n = tl.arange(0, ENTRIES)
    entry = n[None, :]
    t = m * T + tl.arange(0, T)
    time, begin = t[:, None], m * T
    end = tl.minimum(begin + T, L)
    rows = (time < L) & (entry < N)
    earlier = (time > begin) & (time <= L) & (entry < N)
    b_at = b + batch * b_batch + group * b_group + entry
    inputs = tl.load(b_at + time * b_step, mask=rows, other=0.0).to(real)[:, None, :]
    inputs_before = tl.load(b_at + (time - 1) * b_step, mask=earlier, other=0.0).to(real)[:, None, :]
    readout = tl.load(c + batch * c_batch + group * c_group + entry + time * c_step, mask=rows, other=0.0)
    readout = readout.to(real)[:, None, :]
    total_b, total_c = tl.zeros((T, ENTRIES), real), tl.zeros((T, ENTRIES), real)
    for first in range(0, span, CHANNELS):
        place = piece * span + first + tl.arange(0, CHANNELS)
        channel = group * of_group + place
        wide, used = channel[None, :], (place < of_group)[None, :]
        row = channel[:, None]
        mine = (place < of_group)[:, None] & (entry < N)
        rate = tl.load(a + row * N + entry, mask=mine, other=0.0)
        kept = (chunk * N + entry) * D + row
        state = tl.load(states + kept, mask=mine, other=0.0)
        later = tl.load(after + kept, mask=mine, other=0.0)
        there, before_it = (time < L) & used, (time > begin) & (time <= L) & used
        behind_it = (time + 1 < end) & used
        given = _of_sequence(u, batch, time, wide, there, u_batch, u_step, u_channel, real)
        u_before = _of_sequence(u, batch, time - 1, wide, before_it, u_batch, u_step, u_channel, real)
        x, free, dt = _time_steps(
            delta, bias, batch, time, wide, there, delta_batch, delta_step, delta_channel,
            SOFTPLUS, LEAST, MOST, real,
        )  # fmt: skip
        _, _, dt_before = _time_steps(
            delta, bias, batch, time - 1, wide, before_it, delta_batch, delta_step, delta_channel,
            SOFTPLUS, LEAST, MOST, real,
        )  # fmt: skip
        _, _, dt_behind = _time_steps(
            delta, bias, batch, time + 1, wide, behind_it, delta_batch, delta_step, delta_channel,
            SOFTPLUS, LEAST, MOST, real,
        )  # fmt: skip
        gy = _gated(
            g, z, batch, time, wide, there, g_batch, g_step, g_channel, z_batch, z_step, z_channel, real
        )
        decay = exponential(dt[:, :, None] * rate[None, :, :])
        left, added = tl.associative_scan(
            (
                exponential(dt_before[:, :, None] * rate[None, :, :]),
                (dt_before * u_before)[:, :, None] * inputs_before,
            ),
            0,
            _after_another,
        )
        before = left * state[None, :, :] + added
        h = decay * before + (dt * given)[:, :, None] * inputs
        left, added = tl.associative_scan(
            (exponential(dt_behind[:, :, None] * rate[None, :, :]), gy[:, :, None] * readout),
            0,
            _after_another,
            reverse=True,
        )
        gradient = left * later[None, :, :] + added
        slopes = decay * gradient * before
        dot = tl.sum(inputs * gradient, 2)
        dx = given * dot + tl.sum(rate[None, :, :] * slopes, 2)
        dx = tl.where((free < LEAST) | (free > MOST), 0.0, dx)
        if SOFTPLUS:
            dx = tl.where(x > 20, dx, dx * logistic(x))
        dx = tl.where(there, dx, 0.0)
        d_given = dt * dot
        skip = tl.zeros((1, CHANNELS), real)
        if d is not None:
            skip += tl.load(d + wide, mask=used, other=0.0)
            d_given += skip * gy
        to = (batch * L + time) * D + wide
        tl.store(du + to, d_given.to(du.dtype.element_ty), mask=there)
        tl.store(d_delta + to, dx.to(d_delta.dtype.element_ty), mask=there)
        if z is not None:
            gate = _of_sequence(z, batch, time, wide, there, z_batch, z_step, z_channel, real)
            whole = _of_sequence(g, batch, time, wide, there, g_batch, g_step, g_channel, real)
            sigma = logistic(gate)
            y = tl.sum(readout * h, 2) + skip * given
            slope = whole * y * sigma * (1 + gate * (1 - sigma))
            tl.store(dz + to, slope.to(dz.dtype.element_ty), mask=there)
        tl.store(da + (chunk * D + row) * N + entry, tl.sum(dt[:, :, None] * slopes, 0), mask=mine)
        tl.store(dd + chunk * D + channel, tl.sum(gy * given, 0), mask=place < of_group)
        tl.store(d_bias + chunk * D + channel, tl.sum(dx, 0), mask=place < of_group)
        total_b += tl.sum((dt * given)[:, :, None] * gradient, 1)
        total_c += tl.sum(gy[:, :, None] * h, 1)
    batches = tl.num_programs(0) // (slices * of_all * chunks)
    to = (((piece * batches + batch) * L + time) * of_all + group) * N + entry
    tl.store(db + to, total_b, mask=rows)
    tl.store(dc + to, total_c, mask=rows)


def fits(u: Tensor, a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Whether the kernels take such a call: real, of few entries, with something to compute."""
    groups = b.shape[2] > 0 and c.shape[2] > 0
    return groups and 0 < a.shape[1] <= MOST_ENTRIES.get(a.dtype, 0) and u.numel() > 0


def _of_elements(matrix: Tensor, length: int, groups: int) -> Tensor:
    """b or c for each element and of so many groups; neither time nor a single group is copied."""
    matrix = matrix if matrix.stride(-1) == 1 else plain(matrix)
    matrix = matrix.expand(-1, length, -1, -1)
    if matrix.shape[2] == groups:
        return matrix
    return matrix.unsqueeze(3).expand(-1, -1, -1, groups // matrix.shape[2], -1).flatten(2, 3)


def _added_up(gradient: Tensor, matrix: Tensor) -> Tensor:
    """What is given back of it."""
    gradient = gradient.unflatten(2, (matrix.shape[2], -1)).sum(3)
    gradient = gradient.sum(1, keepdim=True) if matrix.shape[1] == 1 else gradient
    return gradient.to(matrix.dtype)


class _Call:
    """What both passes take, as the kernels read it."""

    def __init__(self, tensors: tuple[Any, ...], numbers: tuple[Any, ...]) -> None:
        u, delta, a, b, c, d, z, bias, initial = tensors
        self.u, self.delta, self.z = u, delta, z
        self.a, self.d, self.bias, self.initial = (
            None if t is None else plain(t) for t in (a, d, bias, initial)
        )
        self.batch, self.length, self.channels = u.shape
        self.size, self.groups = a.shape[1], math.lcm(b.shape[2], c.shape[2])
        self.b, self.c = (_of_elements(m, self.length, self.groups) for m in (b, c))
        self.chunks = triton.cdiv(self.length, CHUNK)
        entries = triton.next_power_of_2(self.size)
        together = 1 if a.dtype == torch.float64 else max(1, 16 // entries)
        self.options = {
            "SOFTPLUS": numbers[0], "LEAST": numbers[1], "MOST": numbers[2],
            "T": CHUNK, "CHANNELS": together, "ENTRIES": entries,
        }  # fmt: skip
        self.programs = self.batch * triton.cdiv(self.channels, together)
        self.sizes = (self.length, self.channels, self.size, self.channels // self.groups, self.chunks)


def _strides(*sequences: Tensor | None) -> list[int]:
    return [stride for t in sequences for stride in ((0, 0, 0) if t is None else t.stride()[:3])]


def selective_scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.selective_scan``."""
    u, _, a, b, c = arguments[:5]
    if not fits(u, a, b, c):
        return reference.selective_scan(*arguments)
    of = _Call(arguments[:9], arguments[9:])
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    final = a.new_empty((of.batch, *a.shape))
    states = a.new_empty((of.batch, of.chunks * of.size, of.channels))
    selective_scan_kernel[(of.programs,)](
        of.u, of.delta, of.a, of.b, of.c, of.d, of.z, of.bias, of.initial, y, final, states, *of.sizes,
        *_strides(of.u, of.delta, of.z, of.b, of.c), **of.options,
        num_warps=8 if a.dtype == torch.float64 else 4, **every_register(),  # otherwise some spill
    )  # fmt: skip
    return y, final, states


def selective_scan_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The adjoint."""
    u, delta, a, b, c, d, z, bias, initial, states, *numbers = arguments
    if not fits(u, a, b, c):
        return reference.selective_scan_backward(g, g_final, *arguments)
    of = _Call(arguments[:9], tuple(numbers))
    g_final, states = plain(g_final), plain(states)
    after, d_initial = torch.empty_like(states), torch.empty_like(g_final)
    selective_scan_adjoint_kernel[(of.programs,)](
        g, of.delta, of.a, of.c, of.z, of.bias, g_final, after, d_initial, *of.sizes,
        *_strides(g, of.delta, of.z, of.c), **of.options, num_warps=8,
    )  # fmt: skip

    def like(t: Tensor) -> Tensor:
        return torch.empty(u.shape, dtype=t.dtype, device=u.device)

    du, d_delta, dz = like(u), like(delta), absent(6, u, a) if z is None else like(z)
    of_group, together = of.channels // of.groups, of.options["CHANNELS"]
    slices = triton.cdiv(of_group, SPAN)
    span = triton.cdiv(triton.cdiv(of_group, slices), together) * together
    parts = of.batch * of.chunks
    da = a.new_empty((parts, *a.shape))
    dd, d_bias = (a.new_empty((parts, of.channels)) for _ in "db")
    db, dc = (a.new_empty((slices, *of.b.shape)) for _ in "bc")
    selective_scan_gradients_kernel[(slices * of.groups * parts,)](
        g, of.u, of.delta, of.a, of.b, of.c, of.d, of.z, of.bias, states, after,
        du, d_delta, dz, da, dd, d_bias, db, dc, *of.sizes, slices, span,
        *_strides(g, of.u, of.delta, of.z, of.b, of.c), **of.options, num_warps=8,
    )  # fmt: skip
    return (
        du,
        d_delta,
        da.sum(0),
        _added_up(db.sum(0), b),
        _added_up(dc.sum(0), c),
        absent(5, u, a) if d is None else dd.sum(0),
        dz,
        absent(7, u, a) if bias is None else d_bias.sum(0),
        absent(8, u, a) if initial is None else d_initial,
    )
