"""Systems of parameters that have not changed since the last call, for calls that record no gradients.

What counts is the numbers: a copy of the parameters is kept and compared in every call, in some 15 us. So it does not
matter how they are written, in place, through ``.data``, by an optimizer or from another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.calls import takes_its_kernel_alone
from .system import ChunkMatrices, StepParameters, System


class KeptSystem:
    """A system that keeps its discretisation, and the chunk matrices that the last call took."""

    def __init__(self, of: System) -> None:
        self._of = of
        self._matrices: tuple[object, ChunkMatrices] | None = None
        self._discrete = of.discrete()
        self.dense = of.dense
        self.c = of.c.detach().clone()  # a view of a parameter may be

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._discrete

    def matrices(self, which: object, make: Callable[[], ChunkMatrices]) -> ChunkMatrices:
        """Those of that kind: made, if the last call took others."""
        kept = self._matrices
        if kept is None or kept[0] != which:
            with torch.inference_mode(False), torch.no_grad():
                self._matrices = kept = which, make()
        return kept[1]

    def kernel(self, length: int) -> Tensor:
        return self._of.kernel(length)

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        return self._of.step_parameters(d)

    def transition(self, length: int) -> Callable[[Tensor], Tensor]:
        return self._of.transition(length)

    def channels(self, start: int, stop: int) -> System:
        return self._of.channels(start, stop)


class _Made(NamedTuple):
    about: object
    numbers: tuple[Tensor, ...]
    system: KeptSystem


class Kept:
    """Room for one system. A copy of it, or what is read from a file, is empty."""

    def __init__(self) -> None:
        self._made: _Made | None = None

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def system(self, about: object, parameters: Sequence[Tensor], make: Callable[[], System]) -> System:
        """What ``make`` makes of these parameters and of ``about``, or what it made the last time.

        Kept are systems on a CPU, of plain tensors, and none while gradients are recorded or torch traces, transforms
        or casts.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _plain(parameters):
            return make()
        made = self._made
        if made is None or made.about != about or not all(map(_same, made.numbers, parameters)):
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # it serves later calls too, in that mode or not
                numbers = tuple(p.detach().clone() for p in parameters)
                self._made = made = _Made(about, numbers, KeptSystem(make()))
        return made.system


def _plain(parameters: Sequence[Tensor]) -> bool:
    return parameters[0].device.type == "cpu" and takes_its_kernel_alone(parameters)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
