"""The chunked state-space convolution by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests).

One kernel walks along the chunks: with X_i the state before step i and U_i the chunk of T elements read there,

    Y_i = U_i Direct + X_i Out,    X_{i+1} = X_i A + U_i In.

Forwards that is the convolution, with Toep(taps) + d, E_out, a_chunk and E_in; backwards, over the gradient of y, its
adjoint, with (Toep(taps) + d)^T, E_in^T, a_chunk^* and E_out^T: the outputs are du, the states the gradients P of the
states. A row of a program's tile is a sequence, or a segment of one where there are few sequences: then a first walk
without outputs finds what each segment adds to the state, and these are carried from segment to segment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from ..triton_registers import every_register
from . import reference

#: Rows of a program's tile: the least that a matrix product takes.
ROWS = 16
#: Programs that fill a large GPU (about four a multiprocessor), and the fewest chunks that a segment is worth.
PROGRAMS, SHORTEST = 512, 16
#: A program's share of a diagonal A's states, and of the elements of a chunk that it writes.
STATES, COLUMNS = 64, 32
#: Entries of a program's matrices beyond which they do not fit: those calls (dense states, long chunks) torch computes.
LARGEST = 18 * 1024


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr):
    """a b + sums."""
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def _swapped(x):
    """Each pair of columns exchanged."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    return tl.interleave(odd, even)


@triton.jit
def _power(a, s, size, row, column, dtype: tl.constexpr, ADJOINT: tl.constexpr, DENSE: tl.constexpr):
    """One power of A, as _advance takes it.

    Dense: A - I. Diagonal: the factors of x and of its swapped pairs, and what ``dtype`` leaves of the two.
    """
    if DENSE:
        inside = (s < size)[:, None] & (s < size)[None, :]
        full = tl.load(a + s[:, None] * row + s[None, :] * column, mask=inside, other=0.0)
        rest = (full - tl.where(s[:, None] == s[None, :], 1.0, 0.0).to(full.dtype)).to(dtype)
        return (rest,)
    else:  # noqa: RET505 (what follows would be compiled too)
        re = tl.load(a + s // 2 * 2, mask=s < size, other=0.0)
        im = tl.load(a + s // 2 * 2 + 1, mask=s < size, other=0.0)
        im = tl.where((s % 2 == 0) != ADJOINT, -im, im)
        re_high, im_high = re.to(dtype), im.to(dtype)
        re_low, im_low = (re - re_high.to(re.dtype)).to(dtype), (im - im_high.to(im.dtype)).to(dtype)
        return re_high, im_high, re_low, im_low


@triton.jit
def _advance(x, added, power, PRECISION: tl.constexpr, DENSE: tl.constexpr):
    """x A + added, small terms first."""
    if DENSE:
        careful: tl.constexpr = "tf32x3" if PRECISION == "tf32" else PRECISION
        x += _product(x, power[0], added, careful)
    else:
        re, im, re_low, im_low = power
        swapped = _swapped(x)
        added += re_low[None, :] * x + im_low[None, :] * swapped
        x = added + im[None, :] * swapped + re[None, :] * x
    return x


@triton.jit
def _meet(x, step, join, joined, kept, keeps, own, at_state, written):
    """The states before a step, of which some rows are kept, and to some something is added."""
    if join is not None:
        x += tl.load(join + own, mask=at_state & (step == joined)[:, None], other=0.0)
    if kept is not None:
        tl.store(kept + own, x, mask=written & (step == keeps)[:, None])
    return x


@triton.jit
def ssm_conv_walk_kernel(
    sequence, w_in, taps, d, w_out, a, lengths, start, join, out, states, kept, end,
    batch, heads, length, chunk, size, segments, steps, parts,
    sequence_batch, sequence_channel, sequence_head, sequence_step,
    in_channel, in_head, in_step, in_state, out_channel, out_head, out_state, out_step,
    a_head, a_row, a_column, start_channel, y_part, y_batch, y_channel, y_head,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    DENSE: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program walks ``steps`` chunks of ROWS (sequence, segment) rows of a head and channel, for SIZE states.

    Where there are outputs it writes COLUMNS elements of each chunk; the first of such programs writes the states.

    sequence (B, C, H, L); w_in (C, H, T, S), w_out (C, H, S, T), taps (C, H, T), d (C, H). States: ``start`` and
    ``end`` (C, B, segments, H, S) are those around a segment; ``join`` (B, H, S) is added to the first channel's
    where the row ends (backwards); ``kept`` (C, B, H, S) is the state where the row ends (backwards: where it
    begins); ``states`` (C, H, B, M, S) are those before each step. out (parts, B, C, H, L). All but sequence, w_in, a
    and w_out may be None. Positions past the end of a sequence are read as zeros.
    """
    dtype: tl.constexpr = w_in.dtype.element_ty
    rows = batch * segments
    tiles = tl.cdiv(rows, ROWS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(0) // tiles % parts
    h = (tl.program_id(0) // tiles // parts % heads).to(tl.int64)
    c = (tl.program_id(0) // tiles // parts // heads).to(tl.int64)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b = (row // segments).to(tl.int64)
    first = row % segments * steps
    chunks = tl.cdiv(length, chunk)
    t = tl.arange(0, CHUNK)
    s = part * SIZE + tl.arange(0, SIZE)
    live = row < rows
    at_state = live[:, None] & (s < size)[None, :]
    written = at_state & (tl.program_id(1) == tl.zeros((1, 1), tl.int32))

    wide_t, wide_s, wide_k = t.to(tl.int64), s.to(tl.int64), k.to(tl.int64)
    to_state = w_in + c * in_channel + h * in_head + wide_t[:, None] * in_step + wide_s[None, :] * in_state
    to_state = tl.load(to_state, mask=(t < chunk)[:, None] & (s < size)[None, :], other=0.0)
    if out is not None:
        from_state = w_out + c * out_channel + h * out_head
        from_state += wide_s[:, None] * out_state + wide_k[None, :] * out_step
        from_state = tl.load(from_state, mask=(s < size)[:, None] & (k < chunk)[None, :], other=0.0)
        lag = t[:, None] - k[None, :] if REVERSE else k[None, :] - t[:, None]
        used = (lag >= part * chunk) & (t < chunk)[:, None] & (k < chunk)[None, :]  # by the first part only
        direct = tl.load(taps + (c * heads + h) * chunk + lag, mask=used, other=0.0)
        if d is not None:
            direct += tl.where(used & (lag == 0), tl.load(d + c * heads + h), 0.0)
    power = _power(a + h * a_head, s, size, a_row, a_column, dtype, REVERSE, DENSE)

    ends = b * 0 + length
    if lengths is not None:
        ends = tl.load(lengths + b, mask=live, other=0)
    ends = ends // chunk
    joined = tl.where(c == 0, chunks - ends, -1)
    keeps = chunks + ends * 0 if REVERSE else ends
    own = (b * heads + h)[:, None] * size + s[None, :]
    if kept is not None:
        kept += c * batch * heads * size
    x = tl.zeros((ROWS, SIZE), dtype)
    around = c * start_channel + ((row.to(tl.int64) * heads + h) * size)[:, None] + s[None, :]
    if start is not None:
        x += tl.load(start + around, mask=at_state, other=0.0)
    read = sequence + c * sequence_channel + h * sequence_head + b * sequence_batch

    for j in range(steps):
        step = first + j
        x = _meet(x, step, join, joined, kept, keeps, own, at_state, written)
        m = chunks - 1 - step if REVERSE else step
        inside = live & (step < chunks)
        begin = m.to(tl.int64) * chunk
        left = tl.where(inside, tl.minimum(length - begin, chunk), 0).to(tl.int32)
        if states is not None:
            address = states + (((c * heads + h) * batch + b) * chunks + m)[:, None] * size + s[None, :]
            tl.store(address, x, mask=written & inside[:, None])
        mask = t[None, :] < left[:, None]
        address = read[:, None] + (begin[:, None] + t[None, :]) * sequence_step
        u = tl.load(address, mask=mask, other=0.0).to(dtype)
        if out is not None:
            y = _product(u, direct, tl.zeros((ROWS, COLUMNS), dtype), PRECISION)
            y = _product(x, from_state, y, PRECISION)
            address = out + part * y_part + c * y_channel + h * y_head + b * y_batch + begin
            mask = k[None, :] < left[:, None]
            tl.store(address[:, None] + k[None, :], y.to(out.dtype.element_ty), mask=mask)
        added = _product(u, to_state, tl.zeros((ROWS, SIZE), dtype), PRECISION)
        x = _advance(x, added, power, PRECISION, DENSE)
    if end is not None:
        tl.store(end + around, x, mask=at_state)
    last = tl.where(first + steps == chunks, chunks, -2)
    _meet(x, last, join, joined, kept, keeps, own, at_state, written)


@triton.jit
def ssm_conv_carry_kernel(
    a, start, states, batch, heads, size, segments, parts, a_head, a_row, a_column, start_channel,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
    DENSE: tl.constexpr, REVERSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From what each segment adds to the state, ``states`` (C, B, segments, H, S), the states they start from: there.

    The first starts from ``start`` (B, H, S) or zero; A is that of a whole segment.
    """
    dtype: tl.constexpr = states.dtype.element_ty
    tiles = tl.cdiv(batch, ROWS)
    b = (tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    part = tl.program_id(0) // tiles % parts
    h = (tl.program_id(0) // tiles // parts % heads).to(tl.int64)
    c = (tl.program_id(0) // tiles // parts // heads).to(tl.int64)
    s = part * SIZE + tl.arange(0, SIZE)
    at_state = (b < batch)[:, None] & (s < size)[None, :]
    power = _power(a + h * a_head, s, size, a_row, a_column, dtype, REVERSE, DENSE)
    x = tl.zeros((ROWS, SIZE), dtype)
    if start is not None:
        x += tl.load(start + (b * heads + h)[:, None] * size + s[None, :], mask=at_state, other=0.0)
    for segment in range(segments):
        row = (b * segments + segment) * heads + h
        address = states + c * start_channel + row[:, None] * size + s[None, :]
        added = tl.load(address, mask=at_state, other=0.0)
        tl.store(address, x, mask=at_state)
        x = _advance(x, added, power, PRECISION, DENSE)


@triton.jit
def ssm_conv_tail_kernel(
    u, e_in, a, lengths, final, batch, heads, length, chunk, size, parts, bits, known,
    u_batch, u_head, u_step, a_head, a_power, a_row, a_column,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, SIZE: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``final`` (B, H, S): from the states before the chunks in which the rows end to those where they end.

    X A^r by the binary powers of A, and the r elements through the last r rows of E_in; NaN where r > 0 and the
    powers are not ``known``, and where a row's length is not one of 0 .. ``length``.
    """
    dtype: tl.constexpr = final.dtype.element_ty
    tiles = tl.cdiv(batch, ROWS)
    b = (tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    part = tl.program_id(0) // tiles % parts
    h = (tl.program_id(0) // tiles // parts).to(tl.int64)
    t = tl.arange(0, CHUNK)
    s = part * SIZE + tl.arange(0, SIZE)
    at_state = (b < batch)[:, None] & (s < size)[None, :]
    ends = b * 0 + length
    if lengths is not None:
        ends = tl.load(lengths + b, mask=b < batch, other=0)
    exists = (ends >= 0) & (ends <= length)
    ends = tl.where(exists, ends, 0)
    rest = ends % chunk
    address = final + (b * heads + h)[:, None] * size + s[None, :]
    x = tl.load(address, mask=at_state, other=0.0)
    for bit in range(bits):
        power = _power(a + h * a_head + bit * a_power, s, size, a_row, a_column, dtype, False, DENSE)
        moved = _advance(x, tl.zeros((ROWS, SIZE), dtype), power, PRECISION, DENSE)
        x = tl.where((rest >> bit & 1 == 1)[:, None], moved, x)
    taken = (t[None, :] >= chunk - rest[:, None]) & (t < chunk)[None, :]
    position = (ends - chunk)[:, None] + t[None, :]
    inputs = u + (b * u_batch + h * u_head)[:, None] + position * u_step
    inputs = tl.load(inputs, mask=taken & (b < batch)[:, None], other=0.0).to(dtype)
    to_state = e_in + (h * chunk + t[:, None]) * size + s[None, :]
    to_state = tl.load(to_state, mask=(t < chunk)[:, None] & (s < size)[None, :], other=0.0)
    x = _product(inputs, to_state, x, PRECISION)
    x = tl.where(exists[:, None] & ((rest == 0)[:, None] | (known != 0)), x, float("nan"))
    tl.store(address, x, mask=at_state)


@triton.jit
def ssm_conv_gradient_kernel(
    u, g, states, adjoint_states, d_direct, d_out, d_in, d_pairs,
    batch, channels, heads, length, chunk, size, parts, splits, tiles,
    u_batch, u_head, u_step, g_batch, g_channel, g_head, g_step,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
    DENSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over all chunks of U^T G, X^T G, U^T P and (diagonal A) of x p and x times the other of p's pair.

    From u (B, H, L), g (B, C, H, L), states (H, B, M, S) and adjoint_states (C, H, B, M, S); to d_direct (.., T, T),
    d_out (.., S, T), d_in (.., T, S) and d_pairs (.., 2, S), all with (splits, C, H) in front. A program sums over
    ``tiles`` times ROWS chunks, for COLUMNS elements of g and as many of u.
    """
    dtype: tl.constexpr = states.dtype.element_ty
    split = (tl.program_id(0) % splits).to(tl.int64)
    part = tl.program_id(0) // splits % parts
    h = (tl.program_id(0) // splits // parts % heads).to(tl.int64)
    c = (tl.program_id(0) // splits // parts // heads).to(tl.int64)
    chunks = tl.cdiv(length, chunk)
    rows = batch.to(tl.int64) * chunks
    t = tl.arange(0, CHUNK)
    s = part * SIZE + tl.arange(0, SIZE)
    k = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    in_state = s < size
    direct = tl.zeros((CHUNK, COLUMNS), dtype)
    from_state = tl.zeros((SIZE, COLUMNS), dtype)
    to_state = tl.zeros((COLUMNS, SIZE), dtype)
    same = tl.zeros((SIZE,), dtype)
    other = tl.zeros((SIZE,), dtype)
    for tile in range(tiles):
        row = (split * tiles + tile) * ROWS + tl.arange(0, ROWS)
        b = row // chunks
        first = row % chunks * chunk
        left = tl.where(row < rows, tl.minimum(length - first, chunk), 0)
        address = u + (b * u_batch + h * u_head + first * u_step)[:, None]
        inputs = tl.load(address + t[None, :] * u_step, mask=t[None, :] < left[:, None], other=0.0).to(dtype)
        mask = k[None, :] < left[:, None]
        some_inputs = tl.load(address + k[None, :] * u_step, mask=mask, other=0.0).to(dtype)
        address = g + (b * g_batch + c * g_channel + h * g_head + first * g_step)[:, None]
        outputs = tl.load(address + k[None, :] * g_step, mask=mask, other=0.0).to(dtype)
        mask = (row < rows)[:, None] & in_state[None, :]
        address = ((h * rows + row) * size)[:, None] + s[None, :]
        x = tl.load(states + address, mask=mask, other=0.0)
        p = tl.load(adjoint_states + c * heads * rows * size + address, mask=mask, other=0.0)
        direct = _product(tl.trans(inputs), outputs, direct, PRECISION)
        from_state = _product(tl.trans(x), outputs, from_state, PRECISION)
        to_state = _product(tl.trans(some_inputs), p, to_state, PRECISION)
        if not DENSE:
            same += tl.sum(x * p, 0)
            other += tl.sum(x * _swapped(p), 0)
    one = (split * channels + c) * heads + h
    address = d_direct + (one * chunk + t[:, None]) * chunk + k[None, :]
    tl.store(address, direct, mask=(t < chunk * (part == 0))[:, None] & (k < chunk)[None, :])
    address = d_out + (one * size + s[:, None]) * chunk + k[None, :]
    tl.store(address, from_state, mask=in_state[:, None] & (k < chunk)[None, :])
    address = d_in + (one * chunk + k[:, None]) * size + s[None, :]
    tl.store(address, to_state, mask=(k < chunk)[:, None] & in_state[None, :])
    if not DENSE:
        in_state = in_state & (tl.program_id(1) == tl.zeros((1,), tl.int32))
        tl.store(d_pairs + one * 2 * size + s, same, mask=in_state)
        tl.store(d_pairs + (one * 2 + 1) * size + s, other, mask=in_state)


def segment_steps(batch: int, columns: int, chunks: int) -> int:
    """The launch rule: how many chunks of a sequence a segment has; all of them, or a power of two.

    Segments are halved while the programs, ``columns`` of them for each tile of rows, stay within PROGRAMS.
    """
    steps = triton.next_power_of_2(max(chunks, 1))
    while (
        steps > SHORTEST and triton.cdiv(batch * triton.cdiv(chunks, steps // 2), ROWS) * columns <= PROGRAMS
    ):
        steps //= 2
    return min(steps, chunks)


def _precision(u: Tensor, parameters: torch.dtype) -> str:
    """Half precisions are exact in TF32; float32 takes three such products, or one where torch is allowed to."""
    if parameters == torch.float64 or torch.version.hip:
        return "ieee"
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed or u.dtype != torch.float32 else "tf32x3"


class _Layout(NamedTuple):
    """Sizes of a call, and how they are divided among programs."""

    batch: int
    heads: int
    length: int
    chunk: int
    size: int
    chunks: int
    steps: int
    segments: int
    parts: int
    block: int
    columns: int
    dense: bool
    precision: str

    @property
    def too_large(self) -> bool:
        entries = self.chunk * (self.block + self.columns) + self.block * self.columns
        return entries + self.dense * self.block**2 > LARGEST

    @property
    def column_programs(self) -> int:
        return triton.cdiv(self.chunk, self.columns)

    def constants(self, *names: str, **more: Any) -> dict[str, Any]:
        every = {
            "ROWS": ROWS,
            "CHUNK": max(16, self.chunk),
            "COLUMNS": self.columns,
            "SIZE": self.block,
            "DENSE": self.dense,
            "PRECISION": self.precision,
        }
        return {**{name: every[name] for name in names or every}, **more}


def _layout(u: Tensor, e_in: Tensor, dense: bool) -> _Layout:
    batch, heads, length = u.shape
    chunk, size = e_in.shape[1:]
    block = max(16, triton.next_power_of_2(size))
    block = block if dense else min(block, STATES)
    parts, chunks = max(1, triton.cdiv(size, block)), triton.cdiv(length, chunk)
    columns = min(max(16, chunk), COLUMNS)
    steps = segment_steps(batch, heads * parts * triton.cdiv(chunk, columns), chunks)
    segments = triton.cdiv(chunks, steps) if steps else 1
    precision = _precision(u, e_in.dtype)
    return _Layout(
        batch, heads, length, chunk, size, chunks, steps, segments, parts, block, columns, dense, precision
    )


def _tuned(warps: int, stages: int) -> dict[str, int]:
    """What compiles without a spill, which tests/aot shows; HIP's defaults do."""
    return {} if torch.version.hip else {"num_warps": warps, "num_stages": stages}


class _Way(NamedTuple):
    """The recurrence in one direction, for each channel of ``sequence`` (B, C, H, L); see the walk's docstring."""

    sequence: Tensor
    w_in: Tensor
    w_out: Tensor
    taps: Tensor
    d: Tensor | None
    power: Tensor
    lengths: Tensor | None
    reverse: bool
    start: Tensor | None = None
    join: Tensor | None = None

    def of_one_channel(self) -> _Way:
        return self._replace(sequence=self.sequence[:, :1], w_in=self.w_in[:1], w_out=self.w_out[:1])


def _power_strides(layout: _Layout, power: Tensor, reverse: bool) -> tuple[int, int, int]:
    """Of a head's power of A (contiguous but for the first dimension), and of the rows and columns of a dense one."""
    row, column = (1, layout.size) if reverse else (layout.size, 1)
    return power.stride(0), row, column


def _walk(
    way: _Way,
    layout: _Layout,
    start: Tensor | None,
    *,
    out: Tensor | None = None,
    states: Tensor | None = None,
    kept: Tensor | None = None,
    end: Tensor | None = None,
) -> None:
    channels = way.sequence.shape[1]
    tiles = triton.cdiv(layout.batch * layout.segments, ROWS)
    around = (
        end if start is None else start.expand(channels, -1, -1, -1, -1)
    )  # the same states for all channels
    grid = (tiles * layout.parts * layout.heads * channels, 1 if out is None else layout.column_programs)
    stages = 3 if not layout.dense else 2 if out is None else 1
    registers = every_register() if layout.dense else {}
    if grid[0]:
        ssm_conv_walk_kernel[grid](
            way.sequence, way.w_in, way.taps, way.d, way.w_out, way.power, way.lengths,
            start, way.join, out, states, kept, end,
            layout.batch, layout.heads, layout.length, layout.chunk, layout.size,
            layout.segments, layout.steps, layout.parts,
            *way.sequence.stride(), *way.w_in.stride(), *way.w_out.stride(),
            *_power_strides(layout, way.power, way.reverse),
            0 if around is None else around.stride(0), *((0,) * 4 if out is None else out.stride()[:4]),
            **layout.constants(REVERSE=way.reverse), **_tuned(8, stages), **registers,
        )  # fmt: skip


def _starts(way: _Way, layout: _Layout) -> Tensor | None:
    """The states before each segment, (C, B, segments, H, S)."""
    if layout.segments == 1:
        return None if way.start is None else way.start.unsqueeze(0).unsqueeze(2)
    channels = way.sequence.shape[1]
    states = way.taps.new_empty((channels, layout.batch, layout.segments, layout.heads, layout.size))
    _walk(way, layout, None, end=states)
    power = way.power.contiguous() if layout.dense else torch.view_as_complex(way.power)
    for _ in range(layout.steps.bit_length() - 1):
        power = power @ power if layout.dense else power * power
    power = power if layout.dense else torch.view_as_real(power)
    grid = (triton.cdiv(layout.batch, ROWS) * layout.parts * layout.heads * channels,)
    ssm_conv_carry_kernel[grid](
        power, way.start, states, layout.batch, layout.heads, layout.size, layout.segments, layout.parts,
        *_power_strides(layout, power, way.reverse), states.stride(0),
        **layout.constants("ROWS", "SIZE", "DENSE", "PRECISION", REVERSE=way.reverse),
    )  # fmt: skip
    return states


def _parameters(e_in: Tensor, a_powers: Tensor) -> tuple[Tensor, Tensor]:
    """e_in and the powers of A, complex ones as pairs of reals, contiguous."""
    a_powers = plain(a_powers)
    return e_in.contiguous(), torch.view_as_real(a_powers) if a_powers.is_complex() else a_powers


def _forward_way(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> _Way:
    channels = taps.shape[0]
    return _Way(
        u.unsqueeze(1).expand(-1, channels, -1, -1),
        e_in.unsqueeze(0).expand(channels, -1, -1, -1),
        e_out,
        taps.contiguous(),
        None if d is None else d.contiguous(),
        powers[:, -1],
        None if lengths is None else lengths.to(torch.int64).contiguous(),
        reverse=False,
        start=None if initial_state is None else initial_state.contiguous(),
    )


def _finish(layout: _Layout, way: _Way, u: Tensor, e_in: Tensor, powers: Tensor, final: Tensor) -> None:
    """From the states before the chunks in which the rows end to those where they end, in place."""
    _, row, column = _power_strides(layout, powers[:, -1], reverse=False)
    grid = (triton.cdiv(layout.batch, ROWS) * layout.parts * layout.heads,)
    if grid[0]:
        ssm_conv_tail_kernel[grid](
            u, e_in, powers, way.lengths, final,
            layout.batch, layout.heads, layout.length, layout.chunk, layout.size, layout.parts,
            powers.shape[1] - 1, int(powers.shape[1] == layout.chunk.bit_length()), *u.stride(),
            powers.stride(0), powers.stride(1), row, column,
            **layout.constants("ROWS", "CHUNK", "SIZE", "DENSE", "PRECISION"), **_tuned(8 if layout.dense else 4, 1),
        )  # fmt: skip


def _ends_inside(layout: _Layout, lengths: Tensor | None) -> bool:
    """Whether a row may end inside a chunk, or nowhere."""
    return lengths is not None or layout.length % layout.chunk != 0


def ssm_conv(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssm_conv``."""
    layout = _layout(u, e_in, dense=not a_powers.is_complex())
    if layout.too_large:
        return reference.ssm_conv(u, taps, e_out, e_in, a_powers, d, initial_state, lengths)
    e_in, powers = _parameters(e_in, a_powers)
    way = _forward_way(u, taps, e_out, e_in, powers, d, initial_state, lengths)
    channels = taps.shape[0]
    shape = (layout.parts, layout.batch, channels, layout.heads, layout.length)
    y = torch.empty(shape, dtype=u.dtype if layout.parts == 1 else taps.dtype, device=u.device)
    final = taps.new_empty((channels, layout.batch, layout.heads, layout.size))
    _walk(way, layout, _starts(way.of_one_channel(), layout), out=y, kept=final)
    if _ends_inside(layout, lengths):
        _finish(layout, way, u, e_in, powers, final[0])
    return _sum_of_parts(y, u.dtype), final[0]


def _sum_of_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0).to(dtype)


class _TailGradients(NamedTuple):
    """What the last elements of each row add to the gradients; ``join`` is that of the state before them."""

    join: Tensor  # (B, H, S)
    powers: Tensor  # as a_powers
    e_in: Tensor  # (H, T, S)
    u: Tensor  # (B, H, T), of the elements at ``positions`` (B, H, T) where ``taken`` (B, 1, T)
    positions: Tensor
    taken: Tensor


def _tail_gradients(
    g_final: Tensor, u: Tensor, states: Tensor, e_in: Tensor, a_powers: Tensor, lengths: Tensor | None
) -> _TailGradients:
    """The adjoint of the tail kernel, in plain torch: it is O(B H S T), whatever the length."""
    batch, heads, length = u.shape
    chunk, chunks = e_in.shape[1], states.shape[2]
    ends = torch.full((batch,), length, device=u.device) if lengths is None else lengths.to(torch.int64)
    exists = (ends >= 0) & (ends <= length)
    ends = torch.where(exists, ends, 0)
    rest = ends % chunk
    t = torch.arange(chunk, device=u.device)
    taken = (t >= (chunk - rest).unsqueeze(-1)).unsqueeze(1)
    positions = (ends.unsqueeze(-1) - chunk + t).clamp(min=0).unsqueeze(1).expand(-1, heads, -1)
    tail = torch.where(taken, u.gather(-1, positions).to(e_in.dtype), 0)
    known = exists & ((rest == 0) | (a_powers.shape[1] == chunk.bit_length()))
    p = torch.where(known.view(-1, 1, 1), g_final, 0).transpose(0, 1)
    d_e_in, d_tail = torch.einsum("bht,hbs->hts", tail, p), torch.einsum("hbs,hts->bht", p, e_in)

    last = states[:, torch.arange(batch, device=u.device), (ends // chunk).clamp(max=chunks - 1)]
    met = reference.tail_states(last, rest, a_powers)
    p, gradients = reference.tail_adjoint(met, p, rest, a_powers)
    d_powers = a_powers.new_zeros(a_powers.shape)
    for bit, gradient in enumerate(gradients):
        d_powers[:, bit] = gradient
    return _TailGradients(p.transpose(0, 1).contiguous(), d_powers, d_e_in, d_tail, positions, taken)


def ssm_conv_backward(
    g: Tensor,
    g_final: Tensor,
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None,
    initial_state: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The implementation for backend ``triton``; see ``sequence_kernels.ops.ssm_conv``."""
    layout = _layout(u, e_in, dense=not a_powers.is_complex())
    if layout.too_large:
        given = (u, taps, e_out, e_in, a_powers, d, initial_state, lengths)
        return reference.ssm_conv_backward(g, g_final, *given)
    e_in, powers = _parameters(e_in, a_powers)
    forward = _forward_way(u, taps, e_out, e_in, powers, d, initial_state, lengths)
    channels, (batch, heads, length) = taps.shape[0], u.shape
    states, adjoint_states = (
        taps.new_empty((count, heads, batch, layout.chunks, layout.size)) for count in (1, channels)
    )
    one = forward.of_one_channel()
    _walk(one, layout, _starts(one, layout), states=states)

    tail = None
    if length == 0 and lengths is not None:
        g_final = torch.where((lengths == 0).view(-1, 1, 1), g_final, 0)
    elif _ends_inside(layout, lengths):
        tail = _tail_gradients(g_final, u, states[0], e_in, a_powers, lengths)
    backward = forward._replace(
        sequence=g,
        w_in=e_out.mT,
        w_out=forward.w_in.mT,
        reverse=True,
        start=None,
        join=g_final.contiguous() if tail is None else tail.join,
    )
    whole = layout.parts * channels == 1
    du = torch.empty(
        (layout.parts, channels, batch, heads, length),
        dtype=u.dtype if whole else taps.dtype,
        device=u.device,
    )
    d_initial = taps.new_empty((channels, batch, heads, layout.size))
    _walk(
        backward,
        layout,
        _starts(backward, layout),
        out=du.transpose(1, 2),
        states=adjoint_states,
        kept=d_initial,
    )
    du = _sum_of_parts(du.flatten(0, 1), u.dtype)
    d_taps, d_e_out, d_e_in, d_chunk = _gradients(layout, g, u, states[0], adjoint_states)
    d_powers = a_powers.new_zeros(a_powers.shape)
    if tail is not None:
        du.scatter_add_(-1, tail.positions, torch.where(tail.taken, tail.u, 0).to(du.dtype))
        d_powers, d_e_in = tail.powers, d_e_in + tail.e_in
    d_powers[:, -1] = d_chunk
    return du, d_taps, d_e_out, d_e_in, d_powers, d_taps[..., 0].clone(), d_initial.sum(0)


def _gradients(
    layout: _Layout, g: Tensor, u: Tensor, states: Tensor, adjoint_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of taps, e_out, e_in and a_chunk."""
    channels, heads, size, chunk = g.shape[1], layout.heads, layout.size, layout.chunk
    rows, columns = layout.batch * layout.chunks, channels * heads * layout.parts
    tiles = triton.cdiv(rows, ROWS)
    splits = max(1, min(triton.cdiv(PROGRAMS, max(1, columns)), triton.cdiv(tiles, 4)))
    d_direct, d_out, d_in, d_pairs = (
        states.new_zeros(splits, channels, heads, *shape)
        for shape in ((chunk, chunk), (size, chunk), (chunk, size), (2, size))
    )
    if rows and columns:
        ssm_conv_gradient_kernel[(splits * columns, layout.column_programs)](
            u, g, states, adjoint_states, d_direct, d_out, d_in, d_pairs,
            layout.batch, channels, heads, layout.length, chunk, size, layout.parts, splits,
            triton.cdiv(tiles, splits), *u.stride(), *g.stride(),
            **layout.constants(), **_tuned(8, 2 if layout.dense else 3),
        )  # fmt: skip
    if layout.dense:
        p = adjoint_states.sum(0) if channels > 1 else adjoint_states[0]
        d_chunk = states.flatten(1, 2).mT @ p.flatten(1, 2)
    else:
        same, other = d_pairs.sum((0, 1)).unflatten(-1, (-1, 2)).unbind(1)
        d_chunk = torch.complex(same.sum(-1), other[..., 0] - other[..., 1])
    d_taps = reference.diagonal_sums(d_direct.sum(0)).contiguous()
    return d_taps, d_out.sum(0), d_in.sum((0, 1)), d_chunk
