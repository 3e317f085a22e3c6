"""Stages of values that are kept aside for later: what a step that is not a chain is made of.

``depth`` counts down the stack of what is kept, from 0 for the last. ``Open`` makes room for so many values, which
``Put`` fills; whatever lies between it and ``Close`` leaves the stack as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .stages import Passage, Stage

if TYPE_CHECKING:
    from .program import Program


@dataclass(frozen=True, eq=False)
class Open(Stage):
    """Room for ``count`` values."""

    count: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        passage.kept.extend([x] * self.count)
        return x

    def translate(self, program: Program) -> bool:
        for _ in range(self.count):
            program.save()
        return True


@dataclass(frozen=True, eq=False)
class Close(Stage):
    """Forget the last ``count`` values."""

    count: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        del passage.kept[len(passage.kept) - self.count :]
        return x

    def translate(self, program: Program) -> bool:
        for _ in range(self.count):
            program.drop()
        return True


@dataclass(frozen=True, eq=False)
class Put(Stage):
    """Keep the channels."""

    depth: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        passage.kept[-1 - self.depth] = x
        return x

    def translate(self, program: Program) -> bool:
        program.put(self.depth)
        return True


@dataclass(frozen=True, eq=False)
class Take(Stage):
    """The ``size`` channels that are kept there."""

    depth: int
    size: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return passage.kept[-1 - self.depth]

    def translate(self, program: Program) -> bool:
        program.take(self.depth, self.size)
        return True


@dataclass(frozen=True, eq=False)
class Append(Stage):
    """The ``size`` channels that are kept there behind those there are."""

    depth: int
    size: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return torch.cat((x, passage.kept[-1 - self.depth]), -1)

    def translate(self, program: Program) -> bool:
        program.append(self.depth, self.size)
        return True


@dataclass(frozen=True, eq=False)
class Combine(Stage):
    """``alpha`` times the channels that are kept there plus ``beta`` times the present ones."""

    depth: int
    alpha: float
    beta: float

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return self.alpha * passage.kept[-1 - self.depth] + self.beta * x

    def translate(self, program: Program) -> bool:
        program.combine(self.depth, self.alpha, self.beta)
        return True


@dataclass(frozen=True, eq=False)
class Multiply(Stage):
    """The channels that are kept there times the present ones."""

    depth: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return passage.kept[-1 - self.depth] * x

    def translate(self, program: Program) -> bool:
        program.multiply(self.depth)
        return True


@dataclass(frozen=True, eq=False)
class Affine(Stage):
    """``scale`` times each channel plus ``shift``."""

    scale: Tensor
    shift: Tensor

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return x * self.scale + self.shift

    def translate(self, program: Program) -> bool:
        program.affine(self.scale, self.shift)
        return True
