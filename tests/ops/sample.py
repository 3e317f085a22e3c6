"""What a sample call of an op is, and random numbers for one: its test, ``<op>/test_<op>.py``, has a few in SAMPLES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

F64, C128 = torch.float64, torch.complex128


class Sample(NamedTuple):
    """A call ``function(*tensors)`` of one op: all tensors differentiable, float64 or complex128."""

    op: str
    function: Callable[..., Any]
    tensors: tuple[Tensor, ...]


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def complexes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=C128, generator=torch.Generator().manual_seed(seed))


def exponents(*shape: int) -> Tensor:
    return torch.complex(-0.1 - 0.1 * real(*shape, seed=5).abs(), real(*shape, seed=6))


def poles(*shape: int) -> Tensor:
    return torch.complex(-0.5 - real(*shape, seed=7).abs(), real(*shape, seed=8))


def nodes(*shape: int) -> Tensor:
    return torch.complex(torch.zeros(*shape, dtype=F64), 3 * real(*shape, seed=9))
