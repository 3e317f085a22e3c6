"""What layers with a time-varying recurrence share: batches, layouts, states, and how their time steps begin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import inputs, sequences, values
from ..awaited import begun
from ..module import SequenceModule
from ..optim import CarriesOptions
from ..ssm.parameters import initial_log_dt
from .components import dropout_module
from .padding import Lengths, without_padding

State = tuple[Tensor, ...]


class _SelectiveLayer(CarriesOptions, SequenceModule):
    """A layer whose state is a tuple of tensors, the last of them that of the recurrence, in float32 or float64.

    A subclass gives ``_state_shapes`` and ``_sequence``; a step is a sequence of one element.
    """

    def __init__(self, d_model: int, dropout: float, tie_dropout: bool, transposed: bool) -> None:
        super().__init__()
        self.d_model = self.d_output = d_model
        self.transposed = transposed
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=False)

    @property
    def _state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the parts of the state of one sequence."""
        raise NotImplementedError

    def _sequence(
        self, x: Tensor, state: State | None, lengths: Tensor | None, bounds: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """``(B, length, d_model)`` to the same, and the state after each row's length, or after each of the packed
        sequences that the bounds tell.
        """
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        lengths: Lengths | None = None,
        rate: float = 1.0,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, State | None]:
        """Map ``(..., length, d_model)``, or ``(..., d_model, length)`` if transposed.

        ``lengths``: how many elements of each sequence are real, as in ``S4``: the next state is the one after them. It
        is None if no state was given. ``cu_seqlens``: as in ``S4``; on a GPU the recurrence takes the sequences as
        rows, as long as the longest.
        """
        values.unit_rate(self, rate)
        u = x.mT if self.transposed else x
        inputs.of_width(u, self.d_model)
        batch_shape, batch = u.shape[:-2], math.prod(u.shape[:-2])
        rows = u.reshape(batch, *u.shape[-2:])
        counted = bounds = None
        if cu_seqlens is not None:
            bounds = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            batch_shape = torch.Size((len(bounds) - 1,))
        if state is not None:
            self._check_state(state, batch_shape)
            state = tuple(
                part.reshape(math.prod(batch_shape), *shape)
                for part, shape in zip(state, self._state_shapes, strict=True)
            )
        if lengths is not None:
            rows, counted = without_padding(rows, lengths, transposed=False)
        y, after = self._sequence(rows, state, counted, bounds)
        y = self.dropout(y).reshape(u.shape)
        y = y.mT if self.transposed else y
        if state is None:
            return y, None
        return y, tuple(part.reshape(*batch_shape, *part.shape[1:]) for part in after if part is not None)

    def step(self, x: Tensor, state: State | None = None, rate: float = 1.0) -> tuple[Tensor, State]:
        """Map one time step ``(..., d_model)``; without a state, from zeros."""
        inputs.of_width(x, self.d_model)
        inputs.of_dtype(x, next(self.parameters()).dtype)
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        axis = -1 if self.transposed else -2
        y, after = self.forward(x.unsqueeze(axis), state, rate=rate)
        assert after is not None
        return y.squeeze(axis), after

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> State:
        """Zeros; the recurrence's in float32, or float64 if the parameters are."""
        parameter = next(self.parameters())
        real = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        *others, last = self._state_shapes
        dtypes = (*(parameter.dtype for _ in others), real)
        return tuple(
            torch.zeros(*batch_shape, *shape, dtype=dtype, device=device or parameter.device)
            for shape, dtype in zip((*others, last), dtypes, strict=True)
        )

    def unsplit_reason(self) -> str | None:
        return None

    @property
    def state_to_tensor(self) -> Callable[[State], Tensor]:
        """All tensors of a state, one after another."""
        return lambda state: torch.cat(
            [part.flatten(-len(shape)) for part, shape in zip(state, self._state_shapes, strict=True)], -1
        )

    @property
    def d_state(self) -> int:
        return sum(map(math.prod, self._state_shapes))

    def _check_state(self, state: Any, batch_shape: torch.Size) -> None:
        state, shapes = begun(state), self._state_shapes
        if not isinstance(state, (tuple, list)) or len(state) != len(shapes):
            raise TypeError(
                f"state must be a tuple of {len(shapes)} tensors, as default_state() gives, got {_said(state)}"
            )
        for part, shape in zip(state, shapes, strict=True):
            if not isinstance(part, Tensor) or part.shape != (*batch_shape, *shape):
                raise ValueError(f"state must have shape {(*batch_shape, *shape)}, got {_said(part)}")


def _said(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def bias_of_steps(width: int, dt_min: float, dt_max: float, dt_init_floor: float) -> nn.Parameter:
    """What softplus takes to time steps that are log-uniform in dt_min .. dt_max, none below the floor."""
    dt = initial_log_dt(width, dt_min, dt_max, torch.float32).flatten().exp().clamp(min=dt_init_floor)
    return nn.Parameter(dt + torch.log(-torch.expm1(-dt)))


def wide(parameter: Tensor) -> Tensor:
    """In the precision that recurrences have: float32, or float64."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


def is_step(u: Tensor, state: Tensor | None) -> bool:
    """Whether u ``(B, L, ...)`` is one element of what goes on; not in a graph, which serves every length."""
    return state is not None and not torch.compiler.is_compiling() and u.shape[1] == 1
