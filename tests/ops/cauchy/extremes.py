"""Cauchy products of numbers of every size that float32 holds: draws, and sums with the size of their terms."""

from __future__ import annotations

import torch
from torch import Tensor

#: Of the sum of the terms' magnitudes.
TOLERANCE = 1e-5
#: Where the sum of the terms' magnitudes lies, no float32 of the result over- or underflows.
NORMAL = (2.0**-100, 2.0**124)


def _powers_of_two(
    shape: tuple[int, ...], lowest: float, highest: float, generator: torch.Generator
) -> Tensor:
    """Complex; the exponents of both parts are uniform, their signs too."""
    exponent = lowest + (highest - lowest) * torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, (*shape, 2), generator=generator) * 2 - 1
    return torch.view_as_complex(sign * 2**exponent).to(torch.complex64)


def draw(sets: int, channels: int, N: int, L: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """v (sets, channels, N), z (channels, L), w (channels, N), g (sets, channels, L), complex64.

    Sizes around powers of two from -120 to 120, all alike or as different as can be; every third node is a few
    roundings from a pole; poles with a tiny or no real part; nodes on the imaginary axis; infinite nodes.
    """
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, around: tuple[int, int]) -> Tensor:
        middle = float(torch.randint(around[0], around[1] + 1, (), generator=generator))
        spread = (0.5, 3.0, 20.0, 120.0)[int(torch.randint(4, (), generator=generator))]
        return _powers_of_two(shape, max(middle - spread, -120), min(middle + spread, 120), generator)

    reach = (120, 40, 3)[seed % 3]
    z, w = numbers(channels, L, around=(-reach, reach)), numbers(channels, N, around=(-reach, reach))
    v, g = (numbers(sets, channels, size, around=(-110, 110)) for size in (N, L))
    if seed % 2:
        w[:, ::2].real = _powers_of_two((channels, (N + 1) // 2), -140, -20, generator).real
        w[:, ::4].real = 0
    nearest = w[:, torch.randint(N, ((L + 2) // 3,), generator=generator)]
    roundings = torch.randint(-1000, 1001, (*nearest.shape, 2), generator=generator)
    parts = torch.view_as_real(nearest.resolve_conj()).contiguous().view(torch.int32) + roundings.int()
    near = torch.view_as_complex(parts.view(torch.float32))
    z[:, ::3] = torch.where(torch.isfinite(torch.view_as_real(near)).all(-1), near, 1)
    if seed % 4 < 2:
        z.real = 0
    if seed % 5 == 0:
        z[:, -1] = complex(1, float("inf"))
    return v, z, w, g


def _terms(weight: Tensor, z: Tensor, w: Tensor, order: int) -> Tensor:
    """(sets, channels, L, N): weight / (z - w)^order in complex128, whose powers no result in float32 exceeds."""
    z, w = z.to(torch.complex128)[..., None], w.to(torch.complex128)[..., None, :]
    infinite = z.real.isinf() | z.imag.isinf()
    first = 1 / torch.where(infinite, 1, z - w)
    power = first
    for _ in range(1, order):
        power = power * first
    return torch.where(infinite, 0, weight.to(torch.complex128) * power)


def product(v: Tensor, z: Tensor, w: Tensor, pairs: bool, order: int) -> tuple[Tensor, Tensor]:
    """The sums over n, and the sums of the terms' magnitudes."""
    terms = _terms(v[..., None, :], z, w, order)
    if pairs:
        terms = torch.cat((terms, _terms(v.conj()[..., None, :], z, w.conj(), order)), -1)
    return terms.sum(-1), terms.abs().sum(-1)


def transpose(g: Tensor, z: Tensor, w: Tensor, pairs: bool, order: int) -> tuple[Tensor, Tensor]:
    """The sums over l, and the sums of the terms' magnitudes."""
    terms = _terms(g[..., None], z, w, order)
    if pairs:
        terms = torch.cat((terms, _terms(g.conj()[..., None], z.conj(), w, order)), -2)
    return terms.sum(-2), terms.abs().sum(-2)


def worst(got: Tensor, want: tuple[Tensor, Tensor]) -> float:
    """The largest error over the terms' magnitudes, where these are normal numbers; infinite for NaN there."""
    normal = (want[1] > NORMAL[0]) & (want[1] < NORMAL[1])
    error = (got.cpu().to(torch.complex128) - want[0]).abs() / want[1]
    return float(torch.where(normal, error.nan_to_num(float("inf")), 0).max()) if normal.any() else 0.0
