"""The selective steps by a Triton kernel, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU).

dt = clamp(softplus(delta + bias)),  h' = h + (expm1(dt a) h + dt u b),  y = (sum_n c_n h'_n + d u) silu(z)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..triton_exponentials import exponential_minus_one, logistic, time_step
from .kernels import steps


@triton.jit
def selective_step_kernel(
    state, following, state_indices, u, delta, a, b, c, d, z, bias, y,
    u_row, delta_row, b_row, c_row, z_row, slots, heads, P, N, of_group,
    WIDE: tl.constexpr, ONE_DECAY: tl.constexpr, ONE_SKIP: tl.constexpr,
    SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    CHANNELS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """States (slots, heads, P, N), u, z (rows, heads, P), b, c (rows, groups, N) -> y like u; see kernels.py.

    A program steps CHANNELS channels of one row: of one head if WIDE, else heads of one channel. a has N entries a head
    or ONE_DECAY, d P or ONE_SKIP. A row whose slot is -1 gives 0, one whose slot does not exist NaN.
    """
    real: tl.constexpr = state.dtype.element_ty
    n = tl.arange(0, ENTRIES)[None, :]
    tile = tl.arange(0, CHANNELS)[:, None]
    pid = tl.program_id(0)
    if WIDE:
        tiles = tl.cdiv(P, CHANNELS)
        of_row = heads * tiles
        h = tl.zeros((1, 1), tl.int64) + pid % of_row // tiles
        p = pid % tiles * CHANNELS + tile
        used = p < P
        at = h * P + p
    else:
        of_row = tl.cdiv(heads, CHANNELS)
        at = (pid % of_row * CHANNELS + tile).to(tl.int64)
        h = at
        used = at < heads
    row = tl.zeros((1, 1), tl.int64) + pid // of_row
    slot = row if state_indices is None else tl.load(state_indices + row)
    busy = (slot >= 0) & (slot < slots)
    known = (h < heads) & busy
    here = used & (n < N) & busy

    x = tl.load(delta + row * delta_row + h, mask=known, other=0.0).to(real)
    if bias is not None:
        x += tl.load(bias + h, mask=known, other=0.0)
    dt = time_step(x, SOFTPLUS, LEAST, MOST)
    rate = tl.load(a + (h if ONE_DECAY else h * N + n), mask=known if ONE_DECAY else here, other=0.0)
    entry = h // of_group * N + n
    entries = known & (n < N)
    inputs = tl.load(b + row * b_row + entry, mask=entries, other=0.0).to(real)
    readout = tl.load(c + row * c_row + entry, mask=entries, other=0.0).to(real)
    given = tl.load(u + row * u_row + at, mask=used & busy, other=0.0).to(real)

    place = (tl.where(busy, slot, 0) * heads * P + at) * N + n
    old = tl.load(state + place, mask=here, other=0.0)
    new = old + (exponential_minus_one(dt * rate) * old + dt * given * inputs)  # once, and last
    tl.store(following + place, new, mask=here)
    out = tl.sum(tl.where(here, readout * new, 0.0), 1)[:, None]
    if d is not None:
        out += tl.load(d + (h if ONE_SKIP else at), mask=used & busy, other=0.0) * given
    if z is not None:
        gate = tl.load(z + row * z_row + at, mask=used & busy, other=0.0).to(real)
        out = out * (gate * logistic(gate))
    out = tl.where(busy, out, tl.where(slot == -1, 0.0, float("nan")))
    tl.store(y + row * heads * P + at, out.to(y.dtype.element_ty), mask=used)


def kernel(
    state: Tensor,
    state_indices: Tensor | None,
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    least: float,
    most: float,
    next_state: Tensor,
) -> Tensor:
    """The step of ``kernels.Kernel``."""
    rows, heads, width = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if y.numel():
        wide, size = width > 1, state.shape[-1]
        across = width if wide else heads
        entries = triton.next_power_of_2(max(size, 1))
        # A row's b and c serve all channels of a head, so that more of them read these less often.
        channels = min(triton.next_power_of_2(across), max(1, (1024 if wide else 256) // entries))
        tiles = triton.cdiv(across, channels) * (heads if wide else 1)
        selective_step_kernel[(rows * tiles,)](
            state, next_state, state_indices, u, delta, a, b, c, d, z, delta_bias, y,
            u.stride(0), delta.stride(0), b.stride(0), c.stride(0), 0 if z is None else z.stride(0),
            len(state), heads, width, size, heads // b.shape[1],
            WIDE=wide, ONE_DECAY=a.shape[1] == 1, ONE_SKIP=d is None or d.shape[1] == 1,
            SOFTPLUS=softplus, LEAST=least, MOST=most, CHANNELS=channels, ENTRIES=entries,
            num_warps=max(1, min(8, channels * entries // 256)),
        )  # fmt: skip
    return y


selective_step, selective_step_ = steps(kernel)
