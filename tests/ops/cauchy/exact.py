"""Oracles of the Cauchy family for (sets, channels, .) weights and (channels, .) nodes and poles, in complex128."""

from __future__ import annotations

import torch
from torch import Tensor


def _inverse_powers(z: Tensor, w: Tensor, order: int) -> Tensor:
    """(channels, L, N): 1 / (z_l - w_n)^order, 0 at infinite nodes."""
    z, w = z.to(torch.complex128), w.to(torch.complex128)
    infinite = (z.real.isinf() | z.imag.isinf())[..., None]
    difference = z[..., None] - w[..., None, :]
    return torch.where(infinite, 0, 1 / torch.where(infinite, 1, difference) ** order)


def product(v: Tensor, z: Tensor, w: Tensor, pairs: bool, order: int) -> Tensor:
    """sum_n v_n / (z_l - w_n)^order, for pairs with its mirror image: (sets, channels, L)."""
    v = v.to(torch.complex128)
    out = torch.einsum("scn,cln->scl", v, _inverse_powers(z, w, order))
    if pairs:
        out = out + torch.einsum("scn,cln->scl", v.conj(), _inverse_powers(z, w.conj(), order))
    return out


def transpose(g: Tensor, z: Tensor, w: Tensor, order: int) -> Tensor:
    """sum_l g_l / (z_l - w_n)^order: (sets, channels, N)."""
    return torch.einsum("scl,cln->scn", g.to(torch.complex128), _inverse_powers(z, w, order))


def nodes(length: int) -> Tensor:
    """S4's nodes: the bilinear map of points of the unit circle. Imaginary; the last one (omega = -1) is infinite."""
    angle = torch.pi * torch.arange(length, dtype=torch.float64) / max(2 * (length - 1), 1)
    imaginary = 2 * torch.tan(angle)
    if length > 1:
        imaginary[-1] = float("inf")
    return torch.complex(torch.zeros_like(imaginary), imaginary)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Of the norm; infinite if anything is not finite."""
    error = torch.linalg.vector_norm(actual.cpu() - expected)
    if not torch.isfinite(error):
        return float("inf")
    return float(error / torch.linalg.vector_norm(expected).clamp(min=1e-300))
