"""The calls that prove a family of kernels, and those that are timed: each op's directory has some in ``proof.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """One call of a registered op: CPU tensors in the dtypes that its kernels get, and numbers."""

    name: str
    op: str
    args: tuple[Any, ...]


class Workload(NamedTuple):
    """A call of a size that models have, to be timed: ``make`` gives the arguments as those of a ``Case``.

    ``elements``: of the tensor that ``dispatch.choose`` is asked with.
    """

    shape: str
    op: str
    elements: int
    make: Callable[[], tuple[Any, ...]]


class Draw:
    """Random tensors, the same each time: ``precision`` is the real dtype that parameters and states have."""

    def __init__(self, precision: torch.dtype, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.precision = precision

    def real(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(*shape, dtype=torch.float64, generator=self._generator)
        return drawn.to(dtype or self.precision)

    def complex(self, *shape: int) -> Tensor:
        drawn = torch.randn(*shape, dtype=torch.complex128, generator=self._generator)
        return drawn.to(self.precision.to_complex())

    def inside(self, *shape: int) -> Tensor:
        """Numbers in the left half plane: poles, or the exponents of decaying sequences."""
        drawn = self.complex(*shape)
        return torch.complex(-0.05 - 0.2 * drawn.real.abs(), drawn.imag)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self._generator)


def widened(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call in float64 and complex128, on copies."""

    def wide(arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        if arg.is_complex():
            return arg.to(torch.complex128, copy=True)
        return arg.to(torch.float64, copy=True) if arg.is_floating_point() else arg.clone()

    return tuple(wide(arg) for arg in args)
