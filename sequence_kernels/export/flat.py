"""A frozen module as a function of tensors alone, as files of other programs have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..trees import tensors_of, with_tensors


class _Flat(nn.Module):
    """``(x, *tensors of the state)`` to ``(y, *those of the next state)``; of a module without a state x to y.

    Args:
        module: a SequenceModule, which is frozen here.
        step: x is one element, ``(batch, d_model)``, instead of a sequence.

    Raises ValueError for a step of a module that is not causal, and for a state that grows: of pools and attention.
    """

    def __init__(self, module: Any, step: bool) -> None:
        super().__init__()
        if step and not module.causal:
            raise ValueError(f"a {type(module).__name__} that is not causal cannot be stepped")
        self.module = module.freeze()
        self.step = step
        self.empty = self.module.default_state() if module.causal else None
        growing = [
            f"{name or 'the module'}, a {type(part).__name__},"
            for name, part in self.module.named_modules()
            if module.causal and hasattr(part, "d_state") and _grows(part)
        ]
        if growing:
            raise ValueError(f"the state of {growing[-1]} grows with the sequence: it cannot be exported")

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Arguments: of two sequences of several chunks and a rest."""
        weight = next(self.parameters(), next(self.buffers(), torch.empty(0)))
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        width, length = self.module.d_model, 75
        shape = (
            (2, width)
            if self.step
            else (2, width, length)
            if self.module.channels_first
            else (2, length, width)
        )
        x = torch.randn(shape, dtype=dtype, device=weight.device)
        return (x, *tensors_of(None if self.empty is None else self.module.default_state(2)))

    @property
    def dynamic(self) -> tuple[dict[int, Any], ...]:
        """The dimensions of the arguments that are free: batch and length."""
        free = torch.export.Dim.DYNAMIC
        length = {} if self.step else {2 if self.module.channels_first else 1: free}
        return ({0: free} | length, *({0: free} for _ in self.names[0][1:]))

    @property
    def dynamic_shapes(self) -> tuple[Any, ...]:
        """``dynamic`` as torch wants it for ``forward(x, *state)``."""
        x, *state = self.dynamic
        return (x, tuple(state)) if state else (x,)

    @property
    def names(self) -> tuple[Sequence[str], Sequence[str]]:
        """Of the arguments and of the results."""
        count = len(list(tensors_of(self.empty)))
        return ["x", *(f"state_{i}" for i in range(count))], ["y", *(f"next_state_{i}" for i in range(count))]

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = None if self.empty is None else with_tensors(self.empty, iter(state))
        y, after = (self.module.step if self.step else self.module)(x, given)
        return (y, *tensors_of(after))


def _grows(part: Any) -> bool:
    """Whether it begins with a state of no elements and says that it has none of a fixed width."""
    return (
        part.causal and part.d_state is None and any(t.numel() == 0 for t in tensors_of(part.default_state()))
    )
