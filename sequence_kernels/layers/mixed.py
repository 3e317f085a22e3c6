"""What linear recurrent layers share: batches, layouts, states, and the position-wise map after the recurrence."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import inputs, sequences, values
from ..awaited import Awaited, Transition
from ..ops.layouts import as_complex
from ..optim import CarriesOptions
from ..ssm import FrozenSystem, convolve
from ..ssm.scan import Convolution, Maps, diagonal_scan, scan_system, uneven_scan, with_skip
from ..stepping.recurrences import MixedRecurrence
from ..stepping.stages import Stage
from .activations import inner_activation
from .components import dropout_module, output_map
from .padding import Lengths, without_padding
from .pointwise import pointwise
from .systems import _SystemLayer


class _MixedLayer(CarriesOptions, _SystemLayer):
    """``output_linear(dropout(activation(recurrence(x))))`` with a complex state ``(*batch_shape, *state_shape)``.

    A subclass gives ``_sequence`` and ``_element``, the recurrence over a batch of sequences and over one element.

    Args:
        d_model: width of input and output.
        state_shape: of the state of one sequence.
        activation, postact: nonlinearities after the recurrence and after the linear map.
        dropout, tie_dropout: dropout after the activation; tied: one mask for all positions.
        transposed: sequences are ``(batch, d_model, length)``, else ``(batch, length, d_model)``.
        output_linear: whether there is the linear map, and with it ``postact``.
        d_output: width of what comes out of the recurrence, and of the layer; by default ``d_model``.
    """

    #: Names of the parameters of the dynamics, which ask for no weight decay (see ``parameter_groups``).
    dynamics: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        d_model: int,
        state_shape: tuple[int, ...],
        activation: str | None,
        postact: str | None,
        dropout: float,
        tie_dropout: bool,
        transposed: bool,
        output_linear: bool,
        d_output: int | None = None,
    ) -> None:
        super().__init__()
        self.d_model, self.d_output = d_model, d_output or d_model
        self.state_shape = state_shape
        self.constants = None
        self.transposed = transposed
        self.activation = inner_activation(activation, -1, self.d_output)
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=False)
        self.output_linear = output_map(self.d_output, self.d_output, postact, output_linear)

    def _spare_dynamics(self) -> None:
        for name in self.dynamics:
            self.set_options(name, {"weight_decay": 0.0})

    def _sequence(
        self,
        u: Tensor,
        state: Tensor | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        rate: float,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, length, d_model)`` to ``(B, length, d_output)`` and the states after, None if none were given."""
        raise NotImplementedError

    def _element(self, u: Tensor, state: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """``(..., d_model)`` to ``(..., d_output)`` and the next state."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        lengths: Lengths | None = None,
        rate: float = 1.0,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map ``(..., length, d_model)``, or ``(..., d_model, length)`` if transposed, to ``d_output`` channels.

        ``lengths``: how many elements of each sequence are real, as in ``S4``: the next state is the one after them. It
        is None if no state was given. ``rate`` is the step of the input in units of the one that the model was trained
        with, for layers that have a step. ``cu_seqlens``: as in ``S4``.
        """
        u = x.mT if self.transposed else x
        inputs.of_width(u, self.d_model)
        batch_shape = u.shape[:-2]
        batch, states_shape = math.prod(batch_shape), batch_shape
        if cu_seqlens is not None:
            cu_seqlens = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            states_shape = torch.Size((len(cu_seqlens) - 1,))
        if state is not None:
            self._check_state(state, states_shape)
            state = state.reshape(math.prod(states_shape), *self._state_sizes)
        rows = u.reshape(batch, *u.shape[-2:])
        if lengths is not None:
            rows, lengths = without_padding(rows, lengths, transposed=False)
        y, next_state = self._sequence(rows, state, lengths, cu_seqlens, rate)
        y = self.output_linear(self.dropout(self.activation(y.reshape(*u.shape[:-1], self.d_output))))
        next_state = None if next_state is None else next_state.reshape(*states_shape, *self._state_sizes)
        return (y.mT if self.transposed else y), next_state

    def step(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Map one time step ``(..., d_model)``; without a state, from the default one."""
        inputs.of_width(x, self.d_model)
        if state is None:
            state = self.default_state(*x.shape[:-1], device=x.device)
        self._check_state(state, x.shape[:-1])
        y, next_state = self._element(x, state, rate)
        return self.output_linear(self.dropout(self.activation(y))), next_state

    def _stages_behind(self) -> list[Stage]:
        """What a step does after the recurrence."""
        parts = (self.activation, self.dropout, self.output_linear)
        return [stage for part in parts for stage in pointwise(part)]


class _FrozenMaps(nn.Module):
    """``x_t = exp(exponents) x_{t-1} + b u_t``, ``y_t = c x_t + d u_t`` as constants: see ``_DiagonalLayer``."""

    b: Tensor
    c: Tensor
    d: Tensor | None
    a_minus_one: Tensor

    def __init__(self, exponents: Tensor, b: Tensor, c: Tensor, d: Tensor | None) -> None:
        super().__init__()
        self.system = FrozenSystem(scan_system(exponents, c.dtype))
        wide = self.system.taps.dtype
        a_minus_one = torch.view_as_real(torch.expm1(exponents)).to(wide)
        for name, value in (("b", b), ("c", c), ("d", d), ("a_minus_one", a_minus_one)):
            self.register_buffer(name, None if value is None else value.detach().clone())

    @property
    def maps(self) -> Maps:
        return Maps(self.a_minus_one, self.b, self.c, self.d)


class _DiagonalLayer(_MixedLayer):
    """``x_t = exp(exponents) x_{t-1} + B u_t``, ``y_t = scale Re(C x_t) + D u_t``: every state sees every channel.

    A subclass gives ``_discrete``, ``_continuous`` and ``scale``. ``B`` (N, H, 2), ``C`` (O, N, 2), or without the 2
    where they are real; ``D`` is (H), (O, H) or None.
    """

    scale: ClassVar[float]
    B: Tensor
    C: Tensor
    D: Tensor | None
    constants: _FrozenMaps | None

    def _skip(self, skip: str | None) -> nn.Parameter | None:
        """``D`` as drawn at the start: "diagonal", "full" or None."""
        if skip not in ("diagonal", "full", None):
            raise ValueError(f"skip must be 'diagonal', 'full' or None, got {skip!r}")
        if skip is None:
            return None
        if skip == "full":
            return nn.Parameter(torch.randn(self.d_output, self.d_model) / math.sqrt(self.d_model))
        if self.d_output != self.d_model:
            widths = f"d_output={self.d_output} is not d_model={self.d_model}"
            raise ValueError(f"skip must be 'full' or None where {widths}, got {skip!r}")
        return nn.Parameter(torch.randn(self.d_model))

    def _discrete(self, rate: float) -> tuple[Tensor, Tensor]:
        """The exponents ``(N,)`` and the factors ``(N,)`` of the rows of B, complex128."""
        raise NotImplementedError

    def _continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        """``x' = a x + f B u`` with inputs held for steps dt: a ``(N,)``, dt and f, complex128 and float64."""
        raise NotImplementedError

    def _matrices(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Exponents; the discrete B, and C, as real maps to and from real and imaginary parts: (2 N, H), (O, 2 N)."""
        exponents, factors = self._discrete(rate)
        return exponents, *self._maps(factors)

    def _maps(self, factors: Tensor) -> tuple[Tensor, Tensor]:
        wide, real = self.B.double(), self.C.dim() == 2
        b = factors.unsqueeze(-1) * (wide if real else as_complex(wide))
        parts = (self.C, torch.zeros_like(self.C)) if real else (self.C[..., 0], -self.C[..., 1])
        c = self.scale * torch.cat(parts, -1)
        return torch.cat((b.real, b.imag)).to(c.dtype), c

    def _constants(self, rate: float) -> _FrozenMaps:
        return _FrozenMaps(*self._matrices(rate), self.D)

    def _sequence(
        self,
        u: Tensor,
        state: Tensor | Awaited | None,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None,
        rate: float,
    ) -> tuple[Tensor, Tensor | None]:
        b, c, d, run = self._scan(u, rate)
        real, imag = nn.functional.linear(u, b).mT.chunk(2, 1)
        behind = None
        if isinstance(state, Awaited):
            zeros = torch.zeros_like(_pairs(state.start))
            _, _, end = diagonal_scan(run, real, imag, zeros, lengths)
            assert end is not None
            state, behind = state.resolve(torch.view_as_complex(end), self._transition(rate), u.shape[1])
        start = None if state is None else _pairs(state)
        real, imag, final = diagonal_scan(run, real, imag, start, lengths, cu_seqlens)
        y = with_skip(nn.functional.linear(torch.cat((real, imag), 1).mT, c), d, u)
        if state is None or final is None:
            return y, None
        if behind is not None:
            return y, behind
        return y, torch.view_as_complex(final) if state.is_complex() else final.flatten(-2)

    def _transition(self, rate: float) -> Transition:
        exponents, _ = self._discrete(rate)
        return lambda length: lambda state: state * torch.exp(exponents * length).to(state.dtype)

    def _scan(self, u: Tensor, rate: Any) -> tuple[Tensor, Tensor, Tensor | None, Convolution]:
        """The maps in and out, the skip, and what goes from one to the other."""
        if self.constants is not None:
            self._unit_rate(rate)
            constants = self.constants
            return constants.b, constants.c, constants.d, constants.system.convolve
        if values.by_element(rate, u.mT):
            a, dt, factors = self._continuous()
            return *self._maps(factors), self.D, uneven_scan(a, dt, rate, self.C.dtype)
        exponents, b, c = self._matrices(rate)
        system = scan_system(exponents, c.dtype)

        def run(
            u: Tensor, state: Tensor | None, lengths: Tensor | None, cu_seqlens: Tensor | None
        ) -> tuple[Tensor, Tensor | None]:
            return convolve(system, u, None, state, lengths, cu_seqlens=cu_seqlens)

        return b, c, self.D, run

    def _element(self, u: Tensor, state: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        if self.constants is not None:
            self._unit_rate(rate)
            y, after = self.constants.maps.step(u, _pairs(state))
            return y, after.flatten(-2)
        exponents, b, c = self._matrices(rate)
        start = _pairs(state)
        a_minus_one = torch.view_as_real(torch.expm1(exponents)).to(start.dtype)
        y, after = Maps(a_minus_one, b, c, self.D).step(u, start)
        return y, torch.view_as_complex(after)

    def _all_stages(self, rate: float) -> list[Stage]:
        """What ``stages`` says; a subclass says it, for what it overrides."""
        if self.constants is not None:
            self._unit_rate(rate)
        constants = self._constants(rate) if self.constants is None else self.constants
        recurrence = MixedRecurrence(
            constants.maps, constants.system.convolve, is_complex=self.constants is None
        )
        return [recurrence, *self._stages_behind()]


def _pairs(state: Tensor) -> Tensor:
    """A state, complex or frozen, as ``(..., N, 2)``."""
    return torch.view_as_real(state.resolve_conj()) if state.is_complex() else state.unflatten(-1, (-1, 2))
