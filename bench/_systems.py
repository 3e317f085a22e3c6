"""State-space systems to measure on, and what their kernels must cost; shared by several operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.harness.declare import BOTH, Cost
from sequence_kernels.ssm.diagonal import DiagonalSystem

CHUNK = 32


def poles(heads: int, pairs: int, device: torch.device) -> Tensor:
    """S4D-Lin's poles times steps from 1e-3 to 1e-1: complex64 `(H, N)`."""
    dt = torch.logspace(-3, -1, heads, dtype=torch.float64, device=device)[:, None]
    imaginary = math.pi * torch.arange(pairs, dtype=torch.float64, device=device)
    return (dt * torch.complex(torch.full_like(imaginary, -0.5), imaginary)).to(torch.complex64)


def diagonal(heads: int, pairs: int, device: torch.device, channels: int = 1) -> DiagonalSystem:
    """A diagonal system with these poles and random read-outs."""
    x = poles(heads, pairs, device).to(torch.complex128)
    b = -torch.expm1(x)
    c = torch.randn(channels, heads, pairs, dtype=torch.complex64, device=device)
    return DiagonalSystem(x, b, c)


def levels(length: int) -> tuple[int, int]:
    """Rows and columns of the split l = i T + j, with T the power of two at or above sqrt(L)."""
    columns = 2 ** math.ceil(math.log2(length) / 2)
    return math.ceil(length / columns), columns


def vandermonde_cost(heads: int, pairs: int, length: int, moments: int = 1) -> Cost:
    """One pass of the two-level form between (H, N) poles and (H, L) positions, real on the long side.

    Two multiply-adds a pole and position (times the number of moments), and the exponentials of both levels, each
    complex one of which is an exponential, a sine and a cosine. Bytes: v, x and the positions, once each.
    """
    rows, columns = levels(length)
    return Cost(
        bytes=(1 + moments) * 8 * heads * pairs + 4 * heads * length,
        flops=moments * (4 * heads * pairs * length + 6 * heads * pairs * rows),
        transcendentals=3 * heads * pairs * (rows + columns),
    )


def chunked_cost(
    mode: str,
    batch: int,
    heads: int,
    pairs: int,
    length: int,
    *,
    dense: bool = False,
    size: int = 4,
) -> Cost:
    """The chunked convolution as designed: dense Toeplitz blocks, S = 2 N real states, chunks of T, one channel.

    Forward: T + S multiply-adds an output and S an input; a chunk and state takes half a complex multiply-add if A
    is diagonal, S real ones if it is dense. The backward pass multiplies by each matrix's transpose and accumulates
    each matrix's gradient: twice as much again. Bytes: u and y (backward: u, dy and du) once, `size` bytes each, and
    the float32 matrices (backward: read once, and their gradients written).
    """
    state, elements = 2 * pairs, batch * heads * length
    powers = int(math.log2(CHUNK)) + 1
    matrices = 4 * heads * (CHUNK + 2 * CHUNK * state + powers * state * (state if dense else 1))
    advance = 2 * state * state if dense else 8 * pairs
    forward = Cost(
        bytes=2 * size * elements + matrices,
        flops=elements * (2 * CHUNK + 4 * state) + batch * heads * math.ceil(length / CHUNK) * advance,
    )
    if mode != BOTH:
        return forward
    return forward + Cost(bytes=3 * size * elements + 2 * matrices, flops=2 * forward.flops)
