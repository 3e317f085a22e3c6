"""What proves the kernels of the short convolution on a GPU: ragged tiles, both layouts, states, half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from ...proofs.case import Case, Draw, Workload

PRECISIONS = ("float32", "float64", "bfloat16", "float16")


def cases(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32)
    for channels, length, width, silu in ((3, 70, 4, True), (67, 2, 4, False), (5, 260, 2, True)):
        for op in ("causal_conv1d", "causal_conv1d_channels_last"):
            last = op.endswith("last")
            sizes = (2, length, channels) if last else (2, channels, length)
            x, g = (draw.real(*sizes, dtype=dtype) for _ in "xg")
            state, g_final = (draw.real(2, channels, width - 1, dtype=dtype) for _ in "xg")
            bare = length == 2
            rest = (
                draw.real(channels, width),
                None if bare else draw.real(channels),
                None if bare else state,
                silu,
            )
            name = f"{op}, D={channels}, L={length}, W={width}"
            yield Case(name, op, (x, *rest))
            yield Case(f"backward, {name}", f"{op}_backward", (g, g_final, x, *rest))


def workloads(dtype: torch.dtype) -> Iterator[Workload]:
    """Of Mamba, in either layout."""
    for batch, channels, length in ((1, 256, 256), (4, 1536, 1024)):
        for op, sizes in (
            ("causal_conv1d", (batch, channels, length)),
            ("causal_conv1d_channels_last", (batch, length, channels)),
        ):
            shape = f"B={batch}, D={channels}, L={length}, W=4"
            yield Workload(shape, op, batch * channels * length, partial(_layer, sizes, channels, dtype))


def _layer(sizes: tuple[int, int, int], channels: int, dtype: torch.dtype) -> tuple[Any, ...]:
    draw = Draw(torch.float64 if dtype == torch.float64 else torch.float32)
    return draw.real(*sizes, dtype=dtype), draw.real(channels, 4), draw.real(channels), None, True
