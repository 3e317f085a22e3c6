"""The causal depthwise convolution: each channel by a short kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..arguments import inputs, sequences, values
from ..arguments.values import checked
from ..awaited import Awaited, begun
from ..module import SequenceModule
from ..stepping.recurrences import Convolution
from ..stepping.stages import Elementwise, Stage, is_plain, is_tensor
from .activations import inner_activation
from .components import dropout_module
from .padding import Lengths, without_padding
from .pointwise import pointwise


class CausalConv(SequenceModule):
    """``y_t = activation(bias + sum_k weight[k] x_{t - K + 1 + k})`` in each channel, as before Mamba's recurrence.

    ``(..., length, d_model)`` in and out; with ``transposed=True`` ``(..., d_model, length)``.

    Args:
        d_model: number of channels.
        kernel_size: length K of the kernel; its last tap is that of the element itself.
        bias: whether there is one.
        activation: a name as in ``S4``, or None.
        dropout, tie_dropout: dropout after the activation; tied: one mask for all positions.

    ``weight`` (d_model, 1, K) and ``bias`` (d_model), as in ``torch.nn.Conv1d``. The state is the last K - 1 elements,
    ``(*batch_shape, d_model, K - 1)``.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        kernel_size: int = 4,
        bias: bool = True,
        activation: str | None = None,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = self.d_output = d_model
        self.kernel_size = kernel_size
        self.transposed = transposed
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(d_model, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(d_model).uniform_(-bound, bound)) if bias else None
        self.activation = inner_activation(activation, -2, d_model)
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=True)

    @property
    def _within(self) -> str | None:
        """The activation if the op can apply it by itself and nobody looks at the module."""
        return "silu" if type(self.activation) is nn.SiLU and is_plain(self.activation) else None

    def forward(
        self,
        x: Tensor,
        state: Tensor | Awaited | None = None,
        lengths: Lengths | None = None,
        rate: float = 1.0,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map a batch of sequences; ``lengths`` and ``cu_seqlens`` as in ``S4``."""
        values.unit_rate(self, rate)
        u = x if self.transposed else x.mT
        inputs.of_width(u, self.d_model, axis=-2)
        inputs.of_dtype(u, self.weight.dtype)
        states_shape = u.shape[:-2]
        if cu_seqlens is not None:
            cu_seqlens = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            states_shape = torch.Size((len(cu_seqlens) - 1,))
        if state is not None:
            self._check_state(state, states_shape)
        if lengths is not None:
            u, lengths = without_padding(u, lengths, transposed=True)
        behind = None
        if isinstance(state, Awaited):
            state, behind = self._handed_on(state, u)
        before = None if state is None else state.to(u.dtype)
        batch = math.prod(u.shape[:-2])
        start = None if before is None else before.reshape(math.prod(states_shape), *before.shape[-2:])
        within = self._within
        rows = u.reshape(batch, *u.shape[-2:])
        y, last = ops.causal_conv1d(
            rows,
            self.weight.squeeze(1),
            self.bias,
            activation=within,
            initial_state=start,
            cu_seqlens=cu_seqlens,
        )
        y = y.reshape(u.shape)
        y = self.dropout(y if within else self.activation(y))
        y = y if self.transposed else y.mT
        if before is None or behind is not None:
            return y, behind
        if lengths is not None:
            known = torch.cat((before, u), -1).reshape(batch, self.d_model, u.shape[-1] + before.shape[-1])
            index = lengths.view(-1, 1, 1) + torch.arange(before.shape[-1], device=u.device)
            last = known.gather(-1, index.expand(-1, self.d_model, -1))
        return y, last.reshape(before.shape)

    def _handed_on(self, state: Awaited, u: Tensor) -> tuple[Tensor, Tensor]:
        """The last elements before this part, and behind the last."""
        kept, length = self.kernel_size - 1, u.shape[-1]
        last = u[..., max(length - kept, 0) :]
        last = F.pad(last, (kept - last.shape[-1], 0))

        def transition(passed: int) -> Callable[[Tensor], Tensor]:
            moved = min(passed, kept)
            return lambda window: F.pad(window[..., moved:], (0, moved))

        return state.resolve(last, transition, length)

    def step(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Map one time step ``(..., d_model)``; without a state, from zeros."""
        values.unit_rate(self, rate)
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        inputs.of_width(x, self.d_model)
        inputs.of_dtype(x, self.weight.dtype)
        self._check_state(state, x.shape[:-1])
        known = torch.cat((state.to(x.dtype), x.unsqueeze(-1)), -1)
        y = (known * self.weight.squeeze(1)).sum(-1, keepdim=True)
        y = y if self.bias is None else y + self.bias.unsqueeze(-1)
        return self.dropout(self.activation(y)).squeeze(-1), known[..., 1:].clone()

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        values.unit_rate(self, rate)
        inside = self.stages_within(0)
        if inside is not None:
            return inside
        if not is_tensor(self.weight):
            return super().stages(rate=rate)
        after = [
            stage for part in (self.activation, self.dropout) for stage in pointwise(part, transposed=True)
        ]
        return [Convolution(self.weight.squeeze(1), self.bias), *after]

    def stages_within(self, begin: int) -> list[Stage] | None:
        """What a step does to the channels from ``begin`` on of those that there are; None if other code must run."""
        after = [
            stage for part in (self.activation, self.dropout) for stage in pointwise(part, transposed=True)
        ]
        first = after[0] if after else None
        if (
            len(after) > 1
            or not (first is None or isinstance(first, Elementwise))
            or not is_tensor(self.weight)
        ):
            return None
        return [Convolution(self.weight.squeeze(1), self.bias, first, begin)]

    def unsplit_reason(self) -> str | None:
        return None

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros ``(*batch_shape, d_model, kernel_size - 1)``."""
        weight = self.weight
        shape = (*batch_shape, self.d_model, self.kernel_size - 1)
        return torch.zeros(shape, dtype=weight.dtype, device=device or weight.device)

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """The elements kept, channel after channel."""
        return lambda state: state.flatten(-2)

    @property
    def d_state(self) -> int:
        return self.d_model * (self.kernel_size - 1)

    def _check_state(self, state: Tensor | Awaited, batch_shape: torch.Size) -> None:
        state = begun(state)
        expected = (*batch_shape, self.d_model, self.kernel_size - 1)
        if not isinstance(state, Tensor):
            raise TypeError(f"state must be a tensor of shape {expected}, got {type(state).__name__}")
        if state.shape != expected:
            raise ValueError(f"state must have shape {expected}, got {tuple(state.shape)}")
