"""torch's gated recurrent networks as sequence modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .. import internals
from ..arguments import inputs, values
from ..arguments.values import checked
from ..module import SequenceModule
from ..stepping.recurrences import Gates
from ..stepping.stages import Stage, Whole, is_plain, is_tensor
from .padding import Lengths, without_padding


class _Recurrent(SequenceModule):
    """A stack of torch's recurrent layers, ``rnn``, with its state's batch dimensions in front.

    ``(..., length, d_model)`` to ``(..., length, d_hidden)``; with ``transposed=True`` the channels come first. A state
    is a tuple of tensors ``(*batch_shape, n_layers, d_hidden)``.
    """

    _tensors: int  # in a state
    _make: type[nn.GRU] | type[nn.LSTM]
    scans_in_exports = True  # torch unrolls what is in ``rnn``, for one length

    @checked
    def __init__(
        self,
        d_model: int,
        d_hidden: int | None = None,
        n_layers: int = 1,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.d_output = d_model if d_hidden is None else d_hidden
        self.n_layers = n_layers
        self.transposed = transposed
        between = dropout if n_layers > 1 else 0.0
        self.rnn = self._make(d_model, self.d_output, n_layers, batch_first=True, dropout=between)

    def forward(
        self, x: Tensor, state: Any = None, lengths: Lengths | None = None, rate: float = 1.0
    ) -> tuple[Tensor, Any]:
        """Map a batch of sequences; ``lengths`` as in ``S4``: the next state is the one after the real elements."""
        values.unit_rate(self, rate)
        u = x.mT if self.transposed else x
        inputs.of_width(u, self.d_model)
        batch_shape, length = u.shape[:-2], u.shape[-2]
        y, next_state = u.new_zeros(*batch_shape, 0, self.d_output), state
        if length:  # torch refuses an empty sequence
            batch = math.prod(batch_shape)
            given = None if state is None else self._flat(state, batch_shape)
            rows = u.reshape(batch, length, self.d_model)
            if lengths is not None:
                rows, lengths = without_padding(rows, lengths, transposed=False)
            y, after = self._scanned(rows, given) if internals.exports() else self.rnn(rows, given)
            if lengths is not None and state is not None:
                after = self._after(rows, given, lengths)
            y = y.reshape(*batch_shape, length, self.d_output)
            parts = (after,) if isinstance(after, Tensor) else after
            next_state = tuple(part.transpose(0, 1).reshape(*batch_shape, *self._shape) for part in parts)
        return (y.mT if self.transposed else y), None if state is None else next_state

    def _scanned(self, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        """What ``rnn`` does, for exporters: a scan for each of its layers, as torch unrolls it for one length."""
        rnn, batch = self.rnn, x.shape[0]
        if given is None:
            zeros = x.new_zeros(self.n_layers, batch, self.d_output)
            given = zeros if self._tensors == 1 else (zeros, zeros)
        parts = (given,) if isinstance(given, Tensor) else given
        ends = []
        for i in range(self.n_layers):
            w_in, w, b_in, b = (
                getattr(rnn, f"{name}_l{i}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )

            def advance(
                carried: tuple[Tensor, ...], v: Tensor, w: Tensor = w, b: Tensor = b
            ) -> tuple[tuple[Tensor, ...], Tensor]:
                carried = self._advance(v, nn.functional.linear(carried[0], w, b), carried)
                # The batch, for AOTInductor: it knows the sizes in the results of a scan from its arguments alone.
                return carried, carried[0].clone().view(batch, -1)

            start = tuple(part[i].clone() for part in parts)
            inputs = nn.functional.linear(x, w_in, b_in).transpose(0, 1)
            if isinstance(x.shape[1], int) and x.shape[1] == 1:  # a step
                end, h = advance(start, inputs[0])
                x = h.unsqueeze(1)
            else:
                end, h = internals.scan(advance, start, inputs)
                x = h.transpose(0, 1)
            ends.append(end)
        after = tuple(torch.stack(part) for part in zip(*ends, strict=True))
        return x, after[0] if self._tensors == 1 else after

    def _advance(self, v: Tensor, w: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after an element: v is what the weights make of it, w what they make of the hidden state."""
        raise NotImplementedError

    def _after(self, u: Tensor, given: Any, lengths: Tensor) -> Any:
        """The state after each row's length, in torch's layout; torch refuses rows without elements."""
        packed = pack_padded_sequence(u, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        _, after = self.rnn(packed, given)
        some = (lengths > 0).view(1, -1, 1)
        if isinstance(after, Tensor):
            return torch.where(some, after, given)
        return tuple(torch.where(some, new, old) for new, old in zip(after, given, strict=True))

    def unsplit_reason(self) -> str | None:
        return f"a {type(self).__name__} is not linear: each part would wait for the one before"

    @property
    def _shape(self) -> tuple[int, int]:
        return self.n_layers, self.d_output

    def _flat(self, state: Any, batch_shape: torch.Size) -> Any:
        """The state in torch's own layout."""
        if not isinstance(state, tuple) or len(state) != self._tensors:
            raise TypeError(f"state must be a tuple of {self._tensors} tensors, as default_state() gives")
        expected = (*batch_shape, *self._shape)
        for part in state:
            if part.shape != expected:
                raise ValueError(f"state must have shape {expected}, got {tuple(part.shape)}")
        batch = math.prod(batch_shape)
        parts = [part.reshape(batch, *self._shape).transpose(0, 1).contiguous() for part in state]
        return parts[0] if self._tensors == 1 else tuple(parts)

    def step(self, x: Tensor, state: Any = None, rate: float = 1.0) -> tuple[Tensor, Any]:
        """Map one time step ``(..., d_model)``; without a state, from zeros."""
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        u = x.unsqueeze(-1 if self.transposed else -2)
        y, next_state = self.forward(u, state, rate=rate)
        return y.squeeze(-1 if self.transposed else -2), next_state

    def _all_stages(self, rate: float) -> list[Stage]:
        """What ``stages`` says; a subclass says it, for what it overrides."""
        values.unit_rate(self, rate)
        plain = type(self.rnn) is self._make and is_plain(self.rnn)
        return (
            [Gates(self.rnn)] if plain and all(map(is_tensor, self.rnn.parameters())) else [Whole(self, {})]
        )

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        """Zeros."""
        weight = next(self.parameters())
        zeros = torch.zeros(*batch_shape, *self._shape, dtype=weight.dtype, device=device or weight.device)
        return tuple(zeros.clone() for _ in range(self._tensors))

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor]:
        """All tensors of a state, one after another."""
        return lambda state: torch.cat([part.flatten(-2) for part in state], -1)

    @property
    def d_state(self) -> int:
        return self._tensors * self.n_layers * self.d_output


class GRU(_Recurrent):
    """Gated recurrent unit (Cho et al., 2014): ``torch.nn.GRU``, in ``rnn``.

    Args:
        d_model: width of the input.
        d_hidden: width of the state and of the output; None is ``d_model``.
        n_layers: layers, one after another.
        dropout: between the layers. ``tie_dropout`` is taken for the sake of configurations, and ignored.
        transposed: sequences are ``(batch, channels, length)``, else ``(batch, length, channels)``.
    """

    _tensors, _make = 1, nn.GRU

    def _advance(self, v: Tensor, w: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (v_r, v_z, v_n), (w_r, w_z, w_n) = (t.unflatten(-1, (3, -1)).unbind(-2) for t in (v, w))
        r, z = torch.sigmoid(v_r + w_r), torch.sigmoid(v_z + w_z)
        new = torch.tanh(v_n + r * w_n)
        return (new + z * (carried[0] - new),)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        return self._all_stages(rate)


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber, 1997): ``torch.nn.LSTM``, in ``rnn``.

    Arguments as in ``GRU``. The state is ``(hidden, cell)``.
    """

    _tensors, _make = 2, nn.LSTM

    def _advance(self, v: Tensor, w: Tensor, carried: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        i, f, g, o = (v + w).unflatten(-1, (4, -1)).unbind(-2)
        cell = torch.sigmoid(f) * carried[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        return self._all_stages(rate)
