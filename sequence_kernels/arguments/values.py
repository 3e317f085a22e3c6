"""Numbers that modules are made and called with: each check raises an error that names the argument."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..ops.checks import describe

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)  # symbolic ones where a call is traced


def sampling_rate(rate: Any) -> None:
    """Raise unless ``rate`` is finite and above 0: a number, or a tensor without dimensions.

    A tensor's value is looked at on the CPU only, where that is free.
    """
    if isinstance(rate, bool) or not isinstance(rate, (*_NUMBERS, Real, Tensor)):
        raise TypeError(f"rate must be a number, got {type(rate).__name__}: {rate!r}")
    if not isinstance(rate, Tensor):
        _require_positive(rate)
    elif rate.dim() > 0 or rate.is_complex() or rate.dtype == torch.bool:
        raise ValueError(f"rate must be one real number for the whole call, got {describe(rate)}")
    elif rate.device.type == "cpu" and not torch.compiler.is_compiling() and not _wrapped(rate):
        _require_positive(float(rate))


def unit_rate(module: object, rate: Any) -> None:
    """``sampling_rate`` of a layer that counts elements: it cannot follow another rate than 1."""
    sampling_rate(rate)
    if rate != 1:
        raise ValueError(f"{type(module).__name__} has no step in time: rate must be 1, got {rate}")


def _require_positive(rate: Any) -> None:
    if not 0 < rate < math.inf:
        got = "" if torch.compiler.is_compiling() else f", got {rate}"  # a symbolic number has no text
        raise ValueError("rate must be finite and above 0" + got)


def _wrapped(value: Tensor) -> bool:
    """Whether a function transform stands between us and the value."""
    return torch._C._functorch.is_functorch_wrapped_tensor(value)
