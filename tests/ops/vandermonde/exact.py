"""Oracles of the Vandermonde family for arrays of (sets, channels, .): sums as written, in extended precision."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def _extended(t: Tensor) -> np.ndarray:
    return t.to(torch.complex128).resolve_conj().cpu().numpy().astype(np.clongdouble)


def _exponentials(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    return np.exp(x[..., None] * positions)


def product(v: Tensor, x: Tensor, length: int, conjugate: bool, power: int) -> Tensor:
    """sum_n v_n l^power e^{x_n l}: v (sets, channels, N), x (channels, N) -> (sets, channels, length)."""
    positions = np.arange(length).astype(np.longdouble)
    levels = _exponentials(_extended(x), positions) * positions**power
    out = torch.from_numpy(np.einsum("scn,cnl->scl", _extended(v), levels).astype(np.complex128))
    return 2 * out.real if conjugate else out


def transpose(g: Tensor, x: Tensor, power: int) -> Tensor:
    """sum_l g_l l^power e^{x_n l}: g (sets, channels, L), x (channels, N) -> (sets, channels, N)."""
    positions = np.arange(g.shape[-1]).astype(np.longdouble)
    levels = _exponentials(_extended(x), positions) * positions**power
    return torch.from_numpy(np.einsum("scl,cnl->scn", _extended(g), levels).astype(np.complex128))


def levels(x: Tensor, steps: int, width: int) -> tuple[Tensor, Tensor]:
    """e^{x width i} (..., N, steps) and e^{x j} (..., N, width), exact to complex128: for long sequences."""
    rows = _exponentials(_extended(x), (np.arange(steps) * width).astype(np.longdouble))
    columns = _exponentials(_extended(x), np.arange(width).astype(np.longdouble))
    return torch.from_numpy(rows.astype(np.complex128)), torch.from_numpy(columns.astype(np.complex128))


def hippo_exponents(N: int, rate: float) -> Tensor:
    """rate * (-1/2 + i frequency) with the frequencies of S4D-Lin and, for every other n, of S4D-Inv: (1, N)."""
    n = torch.arange(N, dtype=torch.float64)
    frequency = torch.where(n % 2 == 0, torch.pi * n, N / torch.pi * (N / (2 * n + 1) - 1))
    return rate * torch.complex(torch.full_like(n, -0.5), frequency)[None]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Of the norm; infinite if anything is not finite."""
    error = torch.linalg.vector_norm(actual.cpu() - expected)
    if not torch.isfinite(error):
        return float("inf")
    return float(error / torch.linalg.vector_norm(expected).clamp(min=1e-300))
