"""Exponential moving sums by Triton kernels, for CUDA and HIP (and, under TRITON_INTERPRET=1, for tests on the CPU)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def ema_kernel(u, a, y, heads, length):
    """A program has a row."""
    row = tl.program_id(0).to(tl.int64)
    decay = tl.load(a + row % heads)
    last = tl.zeros((), y.dtype.element_ty)
    for t in range(length):
        last = decay * last + tl.load(u + row * length + t)
        tl.store(y + row * length + t, last)


@triton.jit
def ema_backward_kernel(g, y, a, du, da, batch, heads, length):
    """A program has all rows of a head."""
    head = tl.program_id(0).to(tl.int64)
    decay = tl.load(a + head)
    total = tl.zeros((), da.dtype.element_ty)
    for b in range(batch):
        at = (b * heads + head) * length
        following = tl.zeros((), da.dtype.element_ty)
        for i in range(length):
            t = length - 1 - i
            following = tl.load(g + at + t) + decay * following
            tl.store(du + at + t, following)
            total += following * tl.load(y + at + t - 1, mask=t > 0, other=0.0)
    tl.store(da + head, total)


def ema(u: Tensor, a: Tensor) -> Tensor:
    u, a = u.contiguous(), a.contiguous()
    y = torch.empty_like(u)
    batch, heads, length = u.shape
    if batch * heads:
        ema_kernel[(batch * heads,)](u, a, y, heads, length)
    return y


def ema_backward(g: Tensor, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    g, a = g.contiguous(), a.contiguous()
    du, da = torch.empty_like(g), torch.empty_like(a)
    batch, heads, length = u.shape
    if heads:
        ema_backward_kernel[(heads,)](g, ema(u, a), a, du, da, batch, heads, length)
    return du, da
