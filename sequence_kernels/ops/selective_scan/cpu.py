"""The selective scan and its adjoint by the C++ kernels (csrc/selective_scan)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement
from .reference import absent


def as_read(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *rest: Any) -> tuple[Any, ...]:
    """As the kernels take them; sequences, b and c they read at any strides."""
    d, z, bias, initial, *numbers = rest
    d, bias, initial = (None if t is None else t.contiguous() for t in (d, bias, initial))
    return u, delta, a.contiguous(), b, c, d, z, bias, initial, *numbers


@implement("selective_scan", "cpu")
def selective_scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.sequence_kernels_native.selective_scan.default(*as_read(*arguments))


@implement("selective_scan_backward", "cpu")
def selective_scan_backward(g: Tensor, g_final: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, states, numbers = arguments[:9], arguments[9], arguments[10:]
    found = torch.ops.sequence_kernels_native.selective_scan_backward.default(
        g, g_final.contiguous(), *as_read(*tensors, *numbers), states.contiguous()
    )
    return with_absent(tensors, found)


def with_absent(given: tuple[Any, ...], gradients: Any) -> tuple[Tensor, ...]:
    """The gradients, of which those of arguments that were not given are what stands for them."""
    return tuple(
        absent(i, given[0], given[2]) if tensor is None else gradient
        for i, (tensor, gradient) in enumerate(zip(given, gradients, strict=True))
    )
