"""The stages with a state of their own that layers are made of: recurrences, and short convolutions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import checks
from ..ops.layouts import paired
from ..ops.slots import in_place
from ..ssm import ChunkMatrices, FrozenSystem, System, convolve, scan
from ..ssm.scan import Maps
from ..ssm.system import StepParameters
from .stages import Carrier, Elementwise, Passage, replaced

if TYPE_CHECKING:
    from .program import Program


class InRows(Carrier):
    """A carrier of one tensor, ``(rows, *_shape)``; in a program its numbers lie from ``_place`` on in each row."""

    shaped = True
    _shape: tuple[int, ...]
    _dtype: torch.dtype
    _place = 0

    def _viewed(self, numbers: Tensor) -> Tensor:
        """A program's ``(rows, numbers)`` as the state."""
        return numbers.unflatten(-1, self._shape)

    def allocate(self, batch_shape: tuple[int, ...], device: torch.device, room: Tensor | None) -> None:
        self._batch_shape = batch_shape
        if room is None:
            self.state = torch.zeros(math.prod(batch_shape), *self._shape, dtype=self._dtype, device=device)
        else:
            numbers = math.prod(self._shape) * (2 if self._dtype.is_complex else 1)
            self.state = self._viewed(room[:, self._place : self._place + numbers])

    def leaves(self) -> list[Tensor]:
        return [self.state.reshape(*self._batch_shape, *self._shape)]

    def assign(self, values: Iterator[Tensor]) -> None:
        self.state.copy_(next(values).reshape(self.state.shape))


class Recurrence(InRows):
    """A state-space model with its skip ``d``: ``(..., H)`` to ``(..., C H)``. Its state is ``(rows, H, N)``."""

    def __init__(self, system: System, d: Tensor) -> None:
        self._system = system
        self._d = d
        self._matrices: dict[int, ChunkMatrices] = {}

    @functools.cached_property
    def _parameters(self) -> StepParameters:
        return self._system.step_parameters(self._d)

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        if x.dim() == 3:
            return in_place(self._convolved, self.state, (x,), passage.state_indices)
        return ops.ssm_step_(self.state, x, *self._parameters, state_indices=passage.state_indices).flatten(
            -2
        )

    def _convolved(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.no_grad():  # the matrices serve later calls too
            y, final = convolve(self._system, x.mT, self._d, state, made=self._matrices)
        return y.flatten(1, 2).mT, cast("Tensor", final)

    def translate(self, program: Program) -> bool:
        self._place = program.recurrence(self._parameters)
        return True

    def _viewed(self, numbers: Tensor) -> Tensor:
        return paired(numbers).unflatten(-1, self._shape)

    def allocate(self, batch_shape: tuple[int, ...], device: torch.device, room: Tensor | None) -> None:
        b = self._parameters.b
        self._shape, self._dtype = tuple(b.shape), b.dtype
        super().allocate(batch_shape, device, room)


class FrozenRecurrence(InRows):
    """``Recurrence`` by a frozen system. Its state is real, ``(rows, H, 2 N)``."""

    def __init__(self, system: FrozenSystem) -> None:
        self._system = system
        heads, pairs, _ = system.b.shape
        self._shape, self._dtype = (heads, 2 * pairs), system.b.dtype

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        if x.dim() == 3:
            return in_place(self._convolved, self.state, (x,), passage.state_indices)
        parameters = self._system.step_parameters()
        return ops.ssm_step_(paired(self.state), x, *parameters, state_indices=passage.state_indices).flatten(
            -2
        )

    def _convolved(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        y, final = self._system.convolve(x.mT, state)
        return y.flatten(1, 2).mT, cast("Tensor", final)

    def translate(self, program: Program) -> bool:
        self._place = program.recurrence(self._system.step_parameters())
        return True


class MixedRecurrence(InRows):
    """``x_t = a x_{t-1} + B u_t``, ``y_t = C x_t + D u_t``, where every complex x sees every channel.

    Its state is x, complex ``(rows, N)``, or real ``(rows, 2 N)`` of pairs. ``run`` is what blocks go through: see
    ``ssm.scan``.
    """

    def __init__(self, maps: Maps, run: scan.Convolution, is_complex: bool) -> None:
        self._maps, self._run = maps, run
        modes, _ = maps.a_minus_one.shape
        real = maps.a_minus_one.dtype
        self._shape = (modes,) if is_complex else (2 * modes,)
        self._dtype = checks.COMPLEX_OF[real] if is_complex else real

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return in_place(self._moved, self.state, (x,), passage.state_indices)

    def _moved(self, state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        is_complex = state.is_complex()
        start = torch.view_as_real(state) if is_complex else state.unflatten(-1, (-1, 2))
        maps = self._maps
        y, after = maps.step(u, start) if u.dim() == 2 else maps.scan(self._run, u, start)
        return y, torch.view_as_complex(after) if is_complex else after.flatten(-2)

    def translate(self, program: Program) -> bool:
        maps, channels = self._maps, program.width
        if maps.d is not None:
            program.save()
            program.save()
            if maps.d.dim() == 1:
                program.affine(maps.d, torch.zeros_like(maps.d))
            else:
                program.linear(maps.d, None)
            program.put(0)
            program.take(1, channels)
        program.linear(maps.b, None)
        self._place = program.modes(maps.a_minus_one)
        program.linear(maps.c, None)
        if maps.d is not None:
            program.combine(0, 1.0, 1.0)
            program.drop()
            program.drop()
        return True

    def _viewed(self, numbers: Tensor) -> Tensor:
        return paired(numbers) if self._dtype.is_complex else numbers


class Gates(InRows):
    """A stack of GRUs or LSTMs, each ``(..., inputs)`` to ``(..., H)``: torch's ``nn.GRU`` or ``nn.LSTM``.

    Its state is ``(rows, layers, tensors, H)`` with h before the cell; its leaves are each ``(layers, H)``.
    """

    fixed = False

    def __init__(self, rnn: nn.GRU | nn.LSTM) -> None:
        self._rnn = rnn
        self._cells = isinstance(rnn, nn.LSTM)
        self.count = 2 if self._cells else 1
        self._shape = (rnn.num_layers, self.count, rnn.hidden_size)
        self._dtype = next(rnn.parameters()).dtype

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return in_place(self._moved, self.state, (x,), passage.state_indices)

    def _moved(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() == 2:
            return self._stepped(state, x)
        if x.shape[1] == 0:  # which torch refuses
            return x.new_empty(*x.shape[:2], self._shape[-1]), state
        start = tuple(part.transpose(0, 1).contiguous() for part in state.unbind(2))
        y, after = self._rnn(x, start if self._cells else start[0])
        ends = after if self._cells else (after,)
        return y, torch.stack([end.transpose(0, 1) for end in ends], 2)

    def _stepped(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        ends = []
        for layer, parts in enumerate(state.unbind(1)):
            if self._cells:
                end = torch.stack(torch.lstm_cell(x, parts.unbind(1), *self._weights(layer)), 1)
            else:
                end = torch.gru_cell(x, parts[:, 0], *self._weights(layer)).unsqueeze(1)
            ends.append(end)
            x = end[:, 0]
        return x, torch.stack(ends, 1)

    def _weights(self, layer: int) -> list[Tensor]:
        """To the gates: of the input, of h, and the two biases."""
        names = "weight_ih", "weight_hh", "bias_ih", "bias_hh"
        return [getattr(self._rnn, f"{name}_l{layer}") for name in names]

    def translate(self, program: Program) -> bool:
        layers, count, size = self._shape
        self._place = program.place(layers * count * size)
        for layer in range(layers):
            place, inputs = self._place + layer * count * size, program.width
            of_x, of_h, bias_x, bias_h = self._weights(layer)
            program.recall(place, size)
            if self._cells:
                i, f, g, o = torch.cat((of_x, of_h), 1).chunk(4)
                b_i, b_f, b_g, b_o = (bias_x + bias_h).chunk(4)
                program.linear(torch.cat((i, f, o, g)), torch.cat((b_i, b_f, b_o, b_g)))
                program.gates("lstm", place, size, 0)
                continue
            both = torch.cat((of_x, of_h), 1)[: 2 * size], (bias_x + bias_h)[: 2 * size]
            program.linear(*both, behind=True)
            program.linear(of_x[2 * size :], bias_x[2 * size :], behind=True)
            program.linear(of_h[2 * size :], bias_h[2 * size :], inputs, behind=True)
            program.gates("gru", place, size, inputs + size)
        return True

    def leaves(self) -> list[Tensor]:
        layers, _, size = self._shape
        return [part.reshape(*self._batch_shape, layers, size) for part in self.state.unbind(2)]

    def assign(self, values: Iterator[Tensor]) -> None:
        for part in self.state.unbind(2):
            part.copy_(next(values).reshape(part.shape))


class Convolution(InRows):
    """A causal depthwise convolution of the channels from ``begin`` on, and an activation; the other channels stay.

    ``weight`` (channels, taps). Its state is the last inputs, ``(rows, channels, taps - 1)``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: Elementwise | None = None, begin: int = 0
    ) -> None:
        self._weight, self._bias, self._activation, self._begin = weight, bias, activation, begin
        self._shape, self._dtype = (weight.shape[0], weight.shape[1] - 1), weight.dtype

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        mine = x.narrow(-1, self._begin, len(self._weight))
        y = in_place(self._convolved, self.state, (mine,), passage.state_indices)
        return replaced(x, self._begin, y if self._activation is None else self._activation.run(y, passage))

    def _convolved(self, last: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        sequence = x.unsqueeze(-1) if x.dim() == 2 else x.mT
        y, last = ops.causal_conv1d(sequence, self._weight, self._bias, initial_state=last)
        return y.squeeze(-1) if x.dim() == 2 else y.mT, last

    def translate(self, program: Program) -> bool:
        code = None if self._activation is None else self._activation.code
        if self._activation is not None and code is None:
            return False
        self._place = program.convolution(self._weight, self._bias, self._begin, code)
        return True

    def _viewed(self, numbers: Tensor) -> Tensor:
        return numbers.unflatten(-1, self._shape[::-1]).mT


@dataclass(frozen=True)
class Selection:
    """A time-varying recurrence, and the channels where its inputs begin. The outputs are put where u was.

    ``a`` (D, N) for D channels, or (H) for H heads of ``width``; ``d`` and ``bias`` as ``ops.selective_step`` takes
    them; ``groups`` of b and c. ``z`` None: no gate.
    """

    a: Tensor
    d: Tensor
    bias: Tensor
    size: int
    groups: int
    softplus: bool
    limits: tuple[float, float]
    u: int
    delta: int
    b: int
    c: int
    z: int | None = None
    width: int = 1


class Selective(InRows):
    """A time-varying recurrence: see ``Selection``. Its state is ``(rows, D, N)``, or ``(rows, H, P, N)``."""

    def __init__(self, model: Selection) -> None:
        self._model = model
        self._heads = len(model.a)
        self._by_heads = model.a.dim() == 1
        self._shape = (self._heads, *((model.width,) if self._by_heads else ()), model.size)
        self._dtype = model.a.dtype

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        model, heads = self._model, self._heads
        channels, shared = heads * model.width, model.groups * model.size
        u, delta = x.narrow(-1, model.u, channels), x.narrow(-1, model.delta, heads)
        b, c = (x.narrow(-1, at, shared).unflatten(-1, (model.groups, -1)) for at in (model.b, model.c))
        z = None if model.z is None else x.narrow(-1, model.z, channels)
        if self._by_heads:
            u, z = u.unflatten(-1, (heads, -1)), None if z is None else z.unflatten(-1, (heads, -1))
        rows = u, delta, b, c, z
        if x.dim() == 3:
            y = in_place(self._scanned, self.state, rows, passage.state_indices)
        else:
            y = ops.selective_step_(
                self.state,
                *(u, delta, model.a, b, c, model.d, z, model.bias),
                delta_softplus=model.softplus,
                delta_limit=model.limits,
                state_indices=passage.state_indices,
            )
        return replaced(x, model.u, y.flatten(-2) if self._by_heads else y)

    def _scanned(self, state: Tensor, u: Any, delta: Any, b: Any, c: Any, z: Any) -> tuple[Tensor, Tensor]:
        model = self._model
        tensors = u, delta, model.a, b, c, model.d, z, model.bias
        if self._by_heads:
            return ops.ssd(*tensors, dt_softplus=model.softplus, dt_limit=model.limits, initial_state=state)
        return ops.selective_scan(
            *tensors,
            delta_softplus=model.softplus,
            delta_limit=model.limits,
            initial_state=state,
            channels_last=True,
        )

    def translate(self, program: Program) -> bool:
        model = self._model
        sizes = self._heads, model.width, model.size, model.groups
        places = model.u, model.delta, model.b, model.c, model.z
        self._place = program.selective(
            sizes, places, model.a, model.d, model.bias, model.softplus, model.limits
        )
        return True
