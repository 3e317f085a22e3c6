"""What layers with a linear state-space system share: their complex state, and how they are frozen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import values
from ..awaited import Awaited, begun
from ..module import SequenceModule
from ..ops.checks import COMPLEX_OF
from ..ops.layouts import interleaved


class _SystemLayer(SequenceModule):
    """A layer with a complex state ``(*batch_shape, *state_shape)``.

    A subclass gives ``_constants``, what replaces its parameters once it is frozen, and computes by it where it stands
    in ``constants``. Its state is then real, of pairs: the last size is twice that of ``state_shape``.
    """

    state_shape: tuple[int, ...]
    constants: nn.Module | None

    def _constants(self, rate: float) -> nn.Module:
        raise NotImplementedError

    def _weight(self) -> Tensor:
        """A tensor of the precision and on the device of the layer."""
        return next(itertools.chain(self.parameters(), self.buffers()))

    def freeze_here(self, rate: float) -> None:
        if self.constants is not None:
            self._unit_rate(rate)
            return
        self.constants = self._constants(rate)
        for name in list(self._parameters):
            setattr(self, name, None)

    def _unit_rate(self, rate: Any) -> None:
        """Of a frozen layer: its system is that of one rate."""
        values.sampling_rate(rate)
        if rate != 1:
            raise ValueError(
                f"this {type(self).__name__} is frozen: rate must be 1, in units of what it was frozen for, got {rate}"
            )

    def _frozen_error(self) -> ValueError:
        return ValueError(f"this {type(self).__name__} is frozen: it has no parameters to make a system of")

    def unsplit_reason(self) -> str | None:
        return None if self.constants is None else f"this {type(self).__name__} is frozen"

    @property
    def _state_sizes(self) -> tuple[int, ...]:
        """The shape of the state of one sequence, as it is given and taken."""
        *others, last = self.state_shape
        return (*self._sides, *others, last if self.constants is None else 2 * last)

    @property
    def _sides(self) -> tuple[int, ...]:
        """One more size of an awaited state, of a layer that looks both ways."""
        return ()

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros, complex, or real once frozen; on the device of the layer by default."""
        weight = self._weight()
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        dtype = COMPLEX_OF[dtype] if self.constants is None else dtype
        return torch.zeros(*batch_shape, *self._state_sizes, dtype=dtype, device=device or weight.device)

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """A state as real numbers ``(*batch_shape, d_state)``: real and imaginary parts, interleaved."""
        dims = len(self.state_shape)
        return lambda state: (interleaved(state) if state.is_complex() else state).flatten(-dims)

    @property
    def d_state(self) -> int:
        """Real numbers in the state of one sequence."""
        return 2 * math.prod(self.state_shape)

    def _check_state(self, state: Tensor | Awaited, batch_shape: torch.Size) -> None:
        state = begun(state)
        expected = (*batch_shape, *self._state_sizes)
        kind = "complex" if self.constants is None else "real"
        if not isinstance(state, Tensor) or state.is_complex() != (kind == "complex"):
            got = state.dtype if isinstance(state, Tensor) else type(state).__name__
            raise TypeError(f"state must be a {kind} tensor of shape {expected}, got {got}")
        if state.shape != expected:
            raise ValueError(f"state must have shape {expected}, got {tuple(state.shape)}")
