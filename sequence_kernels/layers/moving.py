"""The moving sum: each channel by a decay of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from ..arguments import inputs, values
from ..arguments.values import checked
from ..module import SequenceModule
from .components import dropout_module
from .padding import Lengths, without_padding


class EMA(SequenceModule):
    """``y_t = a y_{t-1} + x_t`` in each channel, with ``a = sigmoid(logit)``, and dropout of the outputs.

    ``(..., length, d_model)`` in and out; with ``transposed=True`` ``(..., d_model, length)``. The state is the last
    output, ``(*batch_shape, d_model)``.
    """

    @checked
    def __init__(
        self, d_model: int, dropout: float = 0.0, tie_dropout: bool = False, transposed: bool = False
    ) -> None:
        super().__init__()
        self.d_model = self.d_output = d_model
        self.transposed = transposed
        self.logit = nn.Parameter(torch.randn(d_model))
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=True)

    def forward(
        self, x: Tensor, state: Tensor | None = None, lengths: Lengths | None = None, rate: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """Map a batch of sequences; ``lengths`` as in ``S4``: the next state is the one after the real elements."""
        values.unit_rate(self, rate)
        u = x if self.transposed else x.mT
        inputs.of_width(u, self.d_model, axis=-2)
        inputs.of_dtype(u, self.logit.dtype)
        if state is not None:
            self._check_state(state, u.shape[:-2])
        if lengths is not None:
            u, lengths = without_padding(u, lengths, transposed=True)
        known = u if state is None else torch.cat((state.to(u.dtype).unsqueeze(-1), u), -1)
        rows = ops.ema(known.reshape(-1, *known.shape[-2:]), self.logit.sigmoid())
        y = self.dropout(rows[..., known.shape[-1] - u.shape[-1] :].reshape(u.shape))
        y = y if self.transposed else y.mT
        if state is None:
            return y, None
        last = u.shape[-1] if lengths is None else lengths
        index = torch.as_tensor(last, device=u.device).expand(len(rows)).view(-1, 1, 1)
        return y, rows.gather(-1, index.expand(-1, self.d_model, -1)).reshape(u.shape[:-1])

    def step(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Map one time step ``(..., d_model)``; without a state, from zeros."""
        values.unit_rate(self, rate)
        inputs.of_width(x, self.d_model)
        inputs.of_dtype(x, self.logit.dtype)
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        self._check_state(state, x.shape[:-1])
        y = self.logit.sigmoid() * state.to(x.dtype) + x
        return self.dropout(y.unsqueeze(-1)).squeeze(-1), y.clone()

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros ``(*batch_shape, d_model)``."""
        shape = (*batch_shape, self.d_model)
        return torch.zeros(shape, dtype=self.logit.dtype, device=device or self.logit.device)

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        return lambda state: state

    @property
    def d_state(self) -> int:
        return self.d_model

    def _check_state(self, state: Tensor, batch_shape: torch.Size) -> None:
        expected = (*batch_shape, self.d_model)
        if not isinstance(state, Tensor):
            raise TypeError(f"state must be a tensor of shape {expected}, got {type(state).__name__}")
        if state.shape != expected:
            raise ValueError(f"state must have shape {expected}, got {tuple(state.shape)}")
