"""Layers under a ``step`` that does not say what it is made of, each by a program of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..trees import tensors_of, with_tensors
from .program import Program
from .stages import Carrier, says_stages, stages_of
from .translation import translated


class InOneCall:
    """The ``step`` of a part of a module by one call of the C++ interpreter: as pure as the part's own.

    It serves calls ``step(x, state)`` in the precision of the part, on a CPU; others go to the part's own step.
    """

    def __init__(self, part: Any, program: Program, carriers: list[Carrier]) -> None:
        self._own = part.step
        self._default_state = part.default_state
        self._program, self._carriers = program, carriers
        self._last: tuple[list[Tensor], Tensor] | None = (
            None  # what was given last: its tensors, and their numbers
        )

    def __call__(self, x: Tensor, state: Any = None, **arguments: Any) -> tuple[Tensor, Any]:
        program = self._program
        served = isinstance(x, Tensor) and x.dtype is program.dtype and x.device.type == "cpu"
        if not served or arguments or x.shape[-1] != program.input or torch.is_grad_enabled():
            return self._own(x, state, **arguments)
        batch_shape = tuple(x.shape[:-1])
        if state is None:
            state = self._default_state(*batch_shape, device=x.device)
        numbers = self._numbers(state, batch_shape)
        if numbers is None:
            return self._own(x, state)
        y = program.run(numbers, x.reshape(-1, x.shape[-1]))
        leaves = self._placed(batch_shape, numbers)
        self._last = leaves, numbers
        return y.view(*batch_shape, y.shape[-1]), with_tensors(state, iter(leaves))

    def _placed(self, batch_shape: tuple[int, ...], numbers: Tensor) -> list[Tensor]:
        """The tensors of a state, as views of the program's numbers."""
        for carrier in self._carriers:
            carrier.allocate(batch_shape, numbers.device, numbers)
        return [leaf for carrier in self._carriers for leaf in carrier.leaves()]

    def _numbers(self, state: Any, batch_shape: tuple[int, ...]) -> Tensor | None:
        """A state as the program has it, in memory of its own; None for one that the part would refuse."""
        given = list(tensors_of(state))
        if self._last is not None:
            leaves, numbers = self._last
            if len(given) == len(leaves) and all(a is b for a, b in zip(given, leaves, strict=True)):
                return numbers.clone()
        numbers = torch.zeros(math.prod(batch_shape), self._program.state_size, dtype=self._program.dtype)
        wanted = self._placed(batch_shape, numbers)
        if [(t.shape, t.dtype) for t in given] != [(t.shape, t.dtype) for t in wanted]:
            return None
        values = iter(given)
        for carrier in self._carriers:
            carrier.assign(values)
        return numbers.clone()


def serve_parts(module: nn.Module, dtype: torch.dtype) -> None:
    """Give the outermost parts of a module whose steps are programs a ``step`` that runs them."""
    for part in module.children():
        program: Program | str = "it does not say its stages"
        if says_stages(part):
            stages = stages_of(part)  # type: ignore[arg-type]
            program = translated(stages, part.d_model, dtype)  # type: ignore[arg-type]
        if isinstance(program, Program):
            carriers = [stage for stage in stages if isinstance(stage, Carrier)]
            part.step = InOneCall(part, program, carriers)  # type: ignore[assignment]
        else:
            serve_parts(part, dtype)
