"""Checks of the arguments of ops: each raises an error that names the argument, what it was and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import internals

REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
HALF = (torch.float16, torch.bfloat16)
COMPLEX_OF = dict(zip(REAL, COMPLEX, strict=True))
REAL_OF = dict(zip(COMPLEX, REAL, strict=True))


def describe(value: Any) -> str:
    """What an error message says of a value."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return repr(value)


def tensors(**named: Any) -> None:
    """Every argument is a tensor, and all are on one device."""
    first: tuple[str, Tensor] | None = None
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if first is None:
            first = (name, value)
        elif value.device != first[1].device:
            raise ValueError(f"{name} is on {value.device}, but {first[0]} is on {first[1].device}")


def dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """The tensor's dtype is one of those allowed."""
    if value.dtype not in allowed:
        expected = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{name} must be one of {expected}, got {value.dtype}")


def shape(name: str, value: Tensor, expected: Sequence[tuple[str, Any]]) -> None:
    """The tensor has the expected shape, given as pairs of a dimension's name ("": none) and its size (None: any)."""
    wrong = value.dim() != len(expected)
    if not wrong:
        for size, (_, want) in zip(value.shape, expected, strict=True):
            wrong = wrong or (want is not None and size != want)
    if wrong:
        form = ", ".join(
            label if want is None else f"{label}={want}" if label else str(want) for label, want in expected
        )
        raise ValueError(f"{name} must have shape ({form}), got {tuple(value.shape)}")


def has_last_dim(name: str, value: Tensor, label: str) -> None:
    """The tensor has at least one dimension."""
    if value.dim() == 0:
        raise ValueError(f"{name} must have shape (..., {label}), got a scalar")


def same_last_dim(name_a: str, a: Tensor, name_b: str, b: Tensor, label: str) -> None:
    """The two tensors have the same last dimension."""
    has_last_dim(name_a, a, label)
    has_last_dim(name_b, b, label)
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{name_a} and {name_b} must have the same last dimension {label}, "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def broadcastable(**named: Tensor) -> None:
    """The dimensions before the last of all tensors broadcast together."""
    try:
        torch.broadcast_shapes(*(t.shape[:-1] for t in named.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in named.items())
        raise ValueError(f"the dimensions before the last must broadcast together, got {shapes}") from None


def integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """The value is an integer (or a symbolic one, when traced) not below the least nor above the most."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def integers(name: str, value: Tensor, least: int, most: int) -> None:
    """The tensor holds integers in least .. most; the values are looked at on the CPU only, where that is free."""
    dtype(name, value, (torch.int32, torch.int64))
    if torch.compiler.is_compiling() or internals.is_wrapped(value):
        return
    if value.device.type != "cpu" or value.numel() == 0:
        return
    low, high = value.aminmax()
    if low < least or high > most:
        raise ValueError(f"{name} must be in {least} .. {most}, got values in {int(low)} .. {int(high)}")


def lengths(name: str, value: Tensor, most: int) -> None:
    """The tensor holds integers in 0 .. most, looked at as in ``integers``."""
    integers(name, value, 0, most)


def promoted(*values: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype."""
    common = values[0].dtype
    for value in values[1:]:
        common = torch.promote_types(common, value.dtype)
    return tuple(value.to(common) for value in values)
