"""An exported program whose ops of ours are those that the compiled library itself defines."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import native
from ..ops.dispatch import implementation

#: The ops that a frozen module calls.
OPS = (
    "ssm_conv",
    "causal_conv1d",
    "causal_conv1d_channels_last",
    "selective_scan",
    "ssd",
    "gated_rms_norm",
)


def received(given: Tensor, like: Tensor, x: Tensor) -> Tensor:
    """A copy of an argument, once the library has found it to be like ``like``, of x's batch, and itself the same.

    Raises RuntimeError where the compiled library is missing.
    """
    reason = native.unavailable("cpu")
    if reason is not None:
        raise RuntimeError(f"an export needs the compiled library: {reason}")
    _register_fakes()
    return torch.ops.sequence_kernels_native.received(given, like, x, native.build())


def lowered(program: Any) -> Any:
    """``sequence_kernels::op`` by ``sequence_kernels_native::op``, which a program without our package can load."""
    return program.run_decompositions(
        {getattr(torch.ops.sequence_kernels, name).default: _by_library(name) for name in OPS}
    )


def _by_library(name: str) -> Callable[..., Any]:
    run = implementation(name, "cpu")
    return lambda *args: run(*map(_finite, args[:-1]))


def _finite(argument: Any) -> Any:
    """Packages cannot hold an infinite number; in float32 the largest is one."""
    if isinstance(argument, float) and math.isinf(argument):
        return math.copysign(sys.float_info.max, argument)
    return argument


@functools.cache
def _register_fakes() -> None:
    """Shapes and dtypes of the library's results: it defines its ops without."""
    for name in ("ssm_conv", "selective_scan", "ssd", "gated_rms_norm"):
        torch.library.register_fake(f"sequence_kernels_native::{name}", _as_op(name))
    torch.library.register_fake("sequence_kernels_native::causal_conv1d", _causal_conv1d)
    torch.library.register_fake("sequence_kernels_native::received", _received)


def _as_op(name: str) -> Callable[..., Any]:
    op = getattr(torch.ops.sequence_kernels, name).default
    return lambda *args: op(*args, "cpu")


def _causal_conv1d(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    channels, taps = weight.shape
    return x.new_empty(x.shape), weight.new_empty((x.shape[0], channels, taps - 1))


def _received(given: Tensor, like: Tensor, x: Tensor, build: int) -> Tensor:
    return given.new_empty(given.shape)
