"""What proves the kernels of the chunked convolution on a GPU.

Ragged rows and chunks, sequences cut in segments, diagonal and dense A, channels, initial states, lengths, and matrices
that fill shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64", "bfloat16", "float16", "tf32")


class Sizes(NamedTuple):
    batch: int
    channels: int
    heads: int
    length: int
    chunk: int
    size: int
    dense: bool
    lengths: bool


#: The third and the sixth are cut in segments by the forward pass too.
SIZES = (
    Sizes(2, 1, 2, 11, 4, 4, False, False),
    Sizes(2, 1, 1, 70, 16, 20, False, True),
    Sizes(3, 2, 2, 150, 4, 6, True, True),
    Sizes(5, 2, 1, 64, 16, 4, True, False),
    Sizes(1, 1, 2, 40, 2, 4, False, False),
    Sizes(1, 1, 1, 33, 1, 3, True, True),
    Sizes(20, 1, 1, 33, 8, 4, False, True),
    Sizes(2, 1, 1, 328, 32, 64, False, False),
    Sizes(2, 1, 1, 330, 32, 64, True, True),
    Sizes(1, 1, 1, 130, 128, 128, True, False),
)


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for sizes in SIZES:
        name = ", ".join(f"{key}={value}" for key, value in sizes._asdict().items())
        arguments = system(sizes, dtype)
        yield Case(name, "ssm_conv", arguments)
        yield Case(f"backward, {name}", "ssm_conv_backward", (*gradients(sizes, dtype), *arguments))
    for sizes in SIZES[1:3] if dtype != torch.float64 else ():
        u, taps, e_out, e_in, powers, *rest = system(sizes, dtype)
        single = powers.to(torch.complex64 if powers.is_complex() else torch.float32)
        arguments = (u, taps, e_out, e_in, single, *rest)
        yield Case(f"powers in float32, {'dense' if sizes.dense else 'diagonal'}", "ssm_conv", arguments)
        gradient = (*gradients(sizes, dtype), *arguments)
        yield Case(f"backward, powers in float32, {sizes.dense=}", "ssm_conv_backward", gradient)


def system(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    """The op's arguments: a random stable model, whose matrices are independent of each other."""
    batch, channels, heads, length, chunk, size, dense, lengths = sizes
    draw = Draw(torch.float64, seed=length + size)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if dense:
        a = 0.9 * torch.linalg.qr(draw.real(heads, size, size))[0]
    else:
        a = 0.9 * torch.exp(1j * draw.real(heads, size // 2))
    powers = [a]
    while len(powers) < chunk.bit_length():
        powers.append(powers[-1] @ powers[-1] if dense else powers[-1].square())
    return (
        draw.real(batch, heads, length, dtype=dtype),
        draw.real(channels, heads, chunk, dtype=real),
        draw.real(channels, heads, size, chunk, dtype=real),
        draw.real(heads, chunk, size, dtype=real),
        torch.stack(powers, 1),
        draw.real(channels, heads, dtype=real) if channels == 1 else None,
        draw.real(batch, heads, size, dtype=real) if chunk > 2 else None,
        draw.integers(length + 1, batch) if lengths else None,
    )


def gradients(sizes: Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of the outputs and of the final state."""
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32, seed=7)
    g = draw.real(sizes.batch, sizes.channels, sizes.heads, sizes.length, dtype=dtype)
    return g, draw.real(sizes.batch, sizes.heads, sizes.size)


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of S4D and of S4."""
    for batch, heads, length in ((1, 64, 256), (4, 256, 1024), (8, 512, 4096)):
        for dense in (False, True):
            sizes = Sizes(batch, 1, heads, length, 32, 64, dense, False)
            shape = f"B={batch}, H={heads}, L={length}, S=64, T=32, {'dense' if dense else 'diagonal'}"
            yield Workload(shape, "ssm_conv", batch * heads * length, partial(_whole, sizes, dtype))


def _whole(sizes: Sizes, dtype: torch.dtype) -> tuple[Any, ...]:
    """As a layer in training calls it: no states, and the power that whole chunks need alone."""
    u, taps, e_out, e_in, powers, d, *_ = system(sizes, dtype)
    return u, taps, e_out, e_in, powers[:, -1:], d, None, None
