"""Convolution with explicit taps by FFT, and its adjoint.

Causal taps sit at lags 0, 1, ..; anticausal ones at lags -1, -2, .., which in a circular buffer of n places are
n - 1, n - 2, ... The buffer is long enough that nothing wraps onto anything. With G the transform of the gradient:
du = F^-1[sum_c G_c conj(K_c)], dk = F^-1[sum_b G conj(U)]. Half precision is computed in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement


def fast_length(least: int) -> int:
    """The smallest n >= least whose prime factors are 2, 3 and 5 only."""
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(-(-least // three) - 1, 0).bit_length()
            best = min(best, two)
            three *= 3
        five *= 5
    return best


def _working(*tensors: Tensor | None) -> tuple[Any, ...]:
    """In the dtype that is computed in: float64 if any has it, otherwise float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return tuple(t if t is None else t.to(torch.float64 if double else torch.float32) for t in tensors)


def _spectra(u: Tensor, k: Tensor, bidirectional: bool) -> tuple[Tensor, Tensor, int, int]:
    """Transforms of u (B, 1, H, F) and of the kernel (C, H, F); the buffer's length and the taps that can matter."""
    length = u.shape[-1]
    taps = min(k.shape[-1], length)
    size = fast_length(length + taps)
    kernel = k[..., :taps]
    if bidirectional:
        causal, anticausal = kernel.chunk(2)
        middle = causal.new_zeros((*causal.shape[:-1], size - 2 * taps))
        kernel = torch.cat((causal, middle, anticausal.flip(-1)), -1)
    u_spectrum = torch.fft.rfft(u, n=size).unsqueeze(1)
    return u_spectrum, torch.fft.rfft(kernel, n=size), size, taps


@implement("fft_conv", "torch")
def fft_conv(u: Tensor, k: Tensor, d: Tensor | None, bidirectional: bool) -> Tensor:
    length, dtype = u.shape[-1], u.dtype
    if u.numel() == 0 or k.numel() == 0:
        return u.new_zeros((u.shape[0], k.shape[0] // (2 if bidirectional else 1), *u.shape[1:]))
    u, k, d = _working(u, k, d)
    u_spectrum, k_spectrum, size, _ = _spectra(u, k, bidirectional)
    y = torch.fft.irfft(u_spectrum * k_spectrum, n=size)[..., :length]
    if d is not None:
        y = y + d.unsqueeze(-1) * u.unsqueeze(1)
    return y.to(dtype).contiguous()


@implement("fft_conv_backward", "torch")
def fft_conv_backward(
    g: Tensor, u: Tensor, k: Tensor, d: Tensor | None, bidirectional: bool
) -> tuple[Tensor, Tensor, Tensor]:
    length, u_dtype, k_dtype = u.shape[-1], u.dtype, k.dtype
    if u.numel() == 0 or k.numel() == 0:
        return torch.zeros_like(u), torch.zeros_like(k), k.new_zeros(g.shape[1:3])
    g, u, k, d = _working(g, u, k, d)
    u_spectrum, k_spectrum, size, taps = _spectra(u, k, bidirectional)
    g_spectrum = torch.fft.rfft(g, n=size)
    du = torch.fft.irfft((g_spectrum * k_spectrum.conj()).sum(1), n=size)[..., :length]
    if d is not None:
        du = du + torch.einsum("bchl,ch->bhl", g, d)
    lags = torch.fft.irfft((g_spectrum * u_spectrum.conj()).sum(0), n=size)
    dk = lags[..., :taps]
    if bidirectional:
        dk = torch.cat((dk, lags[..., size - taps :].flip(-1)))
    dk = torch.nn.functional.pad(dk, (0, k.shape[-1] - taps))
    skip_gradient = torch.einsum("bchl,bhl->ch", g, u).to(k_dtype)
    return du.to(u_dtype).contiguous(), dk.to(k_dtype).contiguous(), skip_gradient
