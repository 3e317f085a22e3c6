"""The short causal convolution and its adjoint by Triton kernels, for CUDA and HIP (interpreted in tests on the CPU).

A program has a tile of elements and channels of one sequence, whichever lie next to each other. Input e of a sequence
is x_{e - (W - 1)}, or before that of the initial state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layouts import plain
from ..triton_registers import every_register


@triton.jit
def _place(D, steps, T_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr):
    """The sequence, block of steps, steps (T_BLOCK, 1) and channels (1, D_BLOCK) of this program."""
    across = tl.cdiv(D, D_BLOCK)
    down = tl.cdiv(steps, T_BLOCK)
    pid = tl.program_id(0)
    d = (pid % across).to(tl.int64) * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    block = pid // across % down
    t = block.to(tl.int64) * T_BLOCK + tl.arange(0, T_BLOCK)[:, None]
    return (pid // (across * down)).to(tl.int64), block, t, d


@triton.jit
def _inputs(x, initial, b, e, d, D, L, x_batch, x_channel, x_step, KEPT: tl.constexpr, dtype: tl.constexpr):
    """Inputs e of the channels d of sequence b; 0 outside."""
    there = (d < D) & (e >= KEPT) & (e < L + KEPT)
    found = tl.load(x + b * x_batch + d * x_channel + (e - KEPT) * x_step, mask=there, other=0.0).to(dtype)
    if initial is not None:
        before = (d < D) & (e < KEPT)
        first = tl.load(initial + (b * D + d) * KEPT + e, mask=before, other=0.0).to(dtype)
        found = tl.where(before, first, found)
    return found


@triton.jit
def _linear(
    x, initial, weight, bias, b, t, d, D, L, x_batch, x_channel, x_step,
    W: tl.constexpr, T_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = weight.dtype.element_ty
    z = tl.zeros((T_BLOCK, D_BLOCK), dtype)
    if bias is not None:
        z += tl.load(bias + d, mask=d < D, other=0.0)
    for k in tl.static_range(W):
        tap = tl.load(weight + d * W + k, mask=d < D, other=0.0)
        z += tap * _inputs(x, initial, b, t + k, d, D, L, x_batch, x_channel, x_step, W - 1, dtype)
    return z


@triton.jit
def causal_conv1d_kernel(
    x, initial, weight, bias, y, final_state, D, L, x_batch, x_channel, x_step, y_batch, y_channel, y_step,
    W: tl.constexpr, SILU: tl.constexpr, T_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    """x (B, D, L) at any strides, weight (D, W), bias (D), initial (B, D, W - 1) -> y like x, and the final state."""
    b, block, t, d = _place(D, tl.maximum(L, 1), T_BLOCK, D_BLOCK)
    z = _linear(x, initial, weight, bias, b, t, d, D, L, x_batch, x_channel, x_step, W, T_BLOCK, D_BLOCK)
    if SILU:
        z = z / (1 + tl.exp(-z))
    here = (t < L) & (d < D)
    tl.store(y + b * y_batch + d * y_channel + t * y_step, z.to(y.dtype.element_ty), mask=here)
    for k in tl.static_range(W - 1):
        e = tl.zeros((1, D_BLOCK), tl.int64) + (L + k)
        kept = _inputs(x, initial, b, e, d, D, L, x_batch, x_channel, x_step, W - 1, x.dtype.element_ty)
        tl.store(final_state + (b * D + d) * (W - 1) + k, kept, mask=d + block * D < D)


@triton.jit
def causal_conv1d_slopes_kernel(
    g, x, initial, weight, bias, slopes, parts, D, L, blocks,
    g_batch, g_channel, g_step, x_batch, x_channel, x_step, h_batch, h_channel, h_step,
    W: tl.constexpr, SILU: tl.constexpr, T_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    """g like x -> the gradients of what the activation takes, and parts (B blocks, D, W + 1) of those of the taps and,
    behind them, of the bias."""
    dtype: tl.constexpr = weight.dtype.element_ty
    b, block, t, d = _place(D, L, T_BLOCK, D_BLOCK)
    here = (t < L) & (d < D)
    h = tl.load(g + b * g_batch + d * g_channel + t * g_step, mask=here, other=0.0).to(dtype)
    if SILU:
        z = _linear(x, initial, weight, bias, b, t, d, D, L, x_batch, x_channel, x_step, W, T_BLOCK, D_BLOCK)
        s = 1 / (1 + tl.exp(-z))
        h = h * s * (1 + z * (1 - s))
    tl.store(slopes + b * h_batch + d * h_channel + t * h_step, h, mask=here)
    part = parts + ((b * blocks + block) * D + d) * (W + 1)
    for k in tl.static_range(W):
        inputs = _inputs(x, initial, b, t + k, d, D, L, x_batch, x_channel, x_step, W - 1, dtype)
        tl.store(part + k, tl.sum(tl.where(here, h * inputs, 0.0), 0)[None, :], mask=d < D)
    tl.store(part + W, tl.sum(h, 0)[None, :], mask=d < D)


@triton.jit
def causal_conv1d_inputs_kernel(
    slopes, g_final, weight, dx, d_initial, D, L,
    h_batch, h_channel, h_step, dx_batch, dx_channel, dx_step,
    W: tl.constexpr, T_BLOCK: tl.constexpr, D_BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of all inputs: dx like x, d_initial (B, D, W - 1)."""
    kept: tl.constexpr = W - 1
    dtype: tl.constexpr = weight.dtype.element_ty
    b, _, e, d = _place(D, L + kept, T_BLOCK, D_BLOCK)
    last = (d < D) & (e >= L) & (e < L + kept)
    total = tl.zeros((T_BLOCK, D_BLOCK), dtype)
    total += tl.load(g_final + (b * D + d) * kept + (e - L), mask=last, other=0.0).to(dtype)
    for k in tl.static_range(W):
        there = (d < D) & (e >= k) & (e < L + k)
        tap = tl.load(weight + d * W + k, mask=d < D, other=0.0)
        total += tap * tl.load(slopes + b * h_batch + d * h_channel + (e - k) * h_step, mask=there, other=0.0)
    tl.store(
        d_initial + (b * D + d) * kept + e, total.to(d_initial.dtype.element_ty), mask=(d < D) & (e < kept)
    )
    inside = (d < D) & (e >= kept) & (e < L + kept)
    to = dx + b * dx_batch + d * dx_channel + (e - kept) * dx_step
    tl.store(to, total.to(dx.dtype.element_ty), mask=inside)


class _Layout:
    """Of sequences (B, L, D) if ``last``, else (B, D, L): batch, channel and step."""

    def __init__(self, x: Tensor, weight: Tensor, last: bool) -> None:
        self.last = last
        self.batch = x.shape[0]
        self.channels, self.width = weight.shape
        self.length = x.shape[1 if last else 2]
        wide = 2 if weight.dtype == torch.float64 else 1  # larger tiles spill
        self.block = (
            {"T_BLOCK": 16, "D_BLOCK": 64 // wide} if last else {"T_BLOCK": 128 // wide, "D_BLOCK": 4}
        )

    def strides(self, x: Tensor) -> tuple[int, int, int]:
        batch, *others = x.stride()
        return (batch, *(reversed(others) if self.last else others))

    def blocks(self, steps: int) -> int:
        return triton.cdiv(steps, self.block["T_BLOCK"])

    def grid(self, steps: int) -> tuple[int]:
        return (self.batch * self.blocks(steps) * triton.cdiv(self.channels, self.block["D_BLOCK"]),)


def _forward(last: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
    ) -> tuple[Tensor, Tensor]:
        layout = _Layout(x, weight, last)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        final_state = x.new_empty((layout.batch, layout.channels, layout.width - 1))
        weight, bias, initial_state = _plain(weight), _plain(bias), _plain(initial_state)
        if final_state.numel() or y.numel():
            causal_conv1d_kernel[layout.grid(max(layout.length, 1))](
                x, initial_state, weight, bias, y, final_state, layout.channels, layout.length,
                *layout.strides(x), *layout.strides(y), W=layout.width, SILU=silu, **layout.block,
            )  # fmt: skip
        return y, final_state

    return run


def _backward(last: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    def run(
        g: Tensor,
        g_final: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_state: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        layout = _Layout(x, weight, last)
        weight, bias, initial_state = _plain(weight), _plain(bias), _plain(initial_state)
        sizes, blocks = (layout.channels, layout.length), layout.blocks(layout.length)
        slopes = torch.empty_like(x, dtype=weight.dtype, memory_format=torch.contiguous_format)
        parts = weight.new_empty((layout.batch * blocks, layout.channels, layout.width + 1))
        if slopes.numel():
            causal_conv1d_slopes_kernel[layout.grid(layout.length)](
                g, x, initial_state, weight, bias, slopes, parts, *sizes, blocks,
                *(stride for t in (g, x, slopes) for stride in layout.strides(t)),
                W=layout.width, SILU=silu, **layout.block,
            )  # fmt: skip
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtype = weight.dtype if initial_state is None else initial_state.dtype
        d_initial = x.new_empty((layout.batch, layout.channels, layout.width - 1), dtype=dtype)
        if dx.numel() or d_initial.numel():
            causal_conv1d_inputs_kernel[layout.grid(layout.length + layout.width - 1)](
                slopes, g_final.contiguous(), weight, dx, d_initial, *sizes,
                *layout.strides(slopes), *layout.strides(dx), W=layout.width, **layout.block,
                **every_register(),
            )  # fmt: skip
        total = parts.sum(0, dtype=torch.float64).to(weight.dtype)
        return dx, total[:, :-1], total[:, -1], d_initial

    return run


def _plain(t: Any) -> Any:
    return None if t is None else plain(t)


causal_conv1d, causal_conv1d_channels_last = _forward(False), _forward(True)
causal_conv1d_backward, causal_conv1d_channels_last_backward = _backward(False), _backward(True)
