"""The S4 layer: a state-space convolution, a skip, a nonlinearity and a position-wise linear map."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import internals, ops
from ..arguments import inputs, keywords, sequences, values
from ..arguments.values import checked
from ..awaited import Awaited
from ..ssm import DPLRSSM, DiagonalSSM, FrozenSystem, SSKernel, System, convolve, convolve_unevenly
from ..stepping.recurrences import FrozenRecurrence, Recurrence
from ..stepping.registers import Close, Multiply, Open, Put, Take
from ..stepping.stages import Elementwise, Kept, Pointwise, Stage
from .activations import activation_module
from .components import dropout_module, linear_activation, output_map
from .padding import Lengths, without_padding
from .pointwise import pointwise
from .systems import _SystemLayer


class S4(_SystemLayer):
    """Structured state-space sequence layer (Gu et al., 2021), with ESPnet's arguments and parameter names.

    ``y = output_linear(dropout(activation(K * x + D x)))`` with a convolution kernel K a head and channel that comes
    from a linear state-space model. There are ``d_model`` heads, or fewer with a ``bottleneck``.

    Args:
        d_model: width H of input and output.
        d_state: size N of the state of a head, conjugates included; even.
        l_max: the kernel is cut off after so many taps. A longer sequence is then a plain convolution without a
            state, and cannot be given one.
        channels: copies C of the readout.
        bidirectional: the kernel looks both ways; such a layer is not causal and cannot be stepped.
        activation, postact: nonlinearities after the convolution and after the linear map.
        hyper_act: the convolution gives twice the channels, and the first half is multiplied by this nonlinearity of
            the second.
        bottleneck: before the convolution a linear map to ``d_model // bottleneck`` heads, and ``activation``.
        gate: the linear map gives ``gate * d_model`` numbers, which are multiplied by as many of a linear map of the
            input and ``activation``; another linear map, ``output_gate``, goes back to ``d_model``.
        dropout, tie_dropout: dropout after the activation; tied: one mask for all positions.
        transposed: sequences are ``(batch, d_model, length)``, by default as in ESPnet and unlike all other layers of
            this library; else ``(batch, length, d_model)``. Where length and width are equal nothing can tell the two
            apart: ``S4(16)`` takes ``(2, 16, 16)`` for 16 channels of 16 elements.
        conv: "chunked" (``ops.ssm_conv``), "fft" (the kernel of full length, ``ops.fft_conv``), or None: the faster
            one. A call with a state is chunked in any case.
        output_linear: whether there is the linear map, and with it ``postact``. Without, the output has
            ``channels`` times as many channels as there are heads.
        **kernel_args: see ``sequence_kernels.ssm.SSKernel``.

    The state is complex, ``(*batch_shape, heads, d_state / 2)``.
    """

    constants: FrozenSystem | None

    @checked
    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        l_max: int | None = None,
        channels: int = 1,
        bidirectional: bool = False,
        activation: str | None = "gelu",
        postact: str | None = "glu",
        hyper_act: str | None = None,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        bottleneck: int | None = None,
        gate: int | None = None,
        transposed: bool = True,
        verbose: bool = False,
        *,
        conv: str | None = None,
        output_linear: bool = True,
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        keywords.refuse(
            f"{type(self).__name__} with mode={kernel_args.get('mode', 'nplr')!r}",
            kernel_args,
            keywords.named(S4.__init__) | SSKernel.options(kernel_args.get("mode", "nplr")),
        )
        for name, value in (("gate", gate), ("bottleneck", bottleneck)):
            if value is not None and value > d_model:
                raise ValueError(f"{name} must be at most d_model={d_model}, got {value}")
        if conv not in (None, "chunked", "fft"):
            raise ValueError(f"conv must be 'chunked' or 'fft', or None for the faster one, got {conv!r}")
        if "glu" in (activation, hyper_act):
            raise ValueError(
                "activation and hyper_act cannot be 'glu', which would halve the width; use postact='glu'"
            )
        if gate is not None and not output_linear:
            raise ValueError(
                f"gate={gate} multiplies the output of the linear map: output_linear must be True"
            )
        self.l_max = l_max
        self.channels = channels
        self.heads = heads = d_model // (bottleneck or 1)
        self.d_model, self.d_output = d_model, d_model if output_linear else heads * channels
        self.n = d_state // 2
        self.state_shape = (heads, self.n)
        self.constants = None
        readouts = channels if hyper_act is None else 2 * channels
        self.bidirectional = bidirectional
        self.transposed = transposed
        self.conv = conv
        self.D = nn.Parameter(torch.randn(readouts, heads))
        self.input_linear = self.input_gate = self.output_gate = self.hyper_activation = None
        if bottleneck is not None:
            self.input_linear = linear_activation(d_model, heads, activation, transposed=True)
        if gate is not None:
            self.input_gate = linear_activation(d_model, d_model * gate, activation, transposed=True)
            self.output_gate = linear_activation(d_model * gate, d_model, transposed=transposed)
        if hyper_act is not None:
            self.hyper_activation = activation_module(hyper_act, dim=-2, size=heads)
        self.kernel = SSKernel(
            heads,
            d_state,
            l_max,
            channels=readouts * (2 if bidirectional else 1),
            verbose=verbose,
            **kernel_args,
        )
        self.causal = not bidirectional and self.kernel.kernel.causal
        self.activation = activation_module(activation, dim=-2, size=heads * channels)
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=True)
        self.output_linear = output_map(
            heads * channels, d_model * (gate or 1), postact, output_linear, transposed
        )

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        rate: float | Tensor = 1.0,
        lengths: Lengths | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Map a batch of sequences.

        Args:
            x: ``(..., length, d_model)``, or ``(..., d_model, length)`` if transposed.
            state: ``(..., heads, d_state / 2)``, what an earlier part of the sequences left.
            rate: sampling step of the input, in units of the one that the model was trained with; one for each row
                ``(batch,)``, or for each element ``(batch, length)`` if the layer is diagonal with ``disc="zoh"``.
            lengths: how many elements of each sequence are real: an int, or integers ``(batch,)``. The rest is never
                read: it is taken as zero, and its gradient is zero. The state returned is the one after the last real
                element. Outputs in the padding mean nothing. ``disc="dss"`` without ``l_max`` normalises over all of
                the length of x, padding counted.
            cu_seqlens: integers ``(sequences + 1,)``, where sequences begin and end that lie one behind the other in a
                batch of one, with a state for each. A layer that looks ahead, or whose kernel is cut off, takes them
                as rows of their own, as long as the longest.

        Returns:
            The output in the shape of ``x``, and the next state, None if none was given.
        """
        u = x if self.transposed else x.mT
        if u.dim() < 2 or u.shape[-2] != self.d_model:
            inputs.of_width(u, self.d_model, axis=-2)
        batch_shape = states_shape = u.shape[:-2]
        if cu_seqlens is not None:
            cu_seqlens = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            if not self._packs:
                of_calls = self.constants is None and not self._ssm.causal  # a kernel for each length
                by = sequences.one_by_one if of_calls else sequences.as_rows
                return by(self, self.forward, x, state, cu_seqlens, {"rate": rate})
            states_shape = torch.Size((len(cu_seqlens) - 1,))
        if state is not None:
            self._check_state(state, states_shape)
        batch = math.prod(batch_shape)
        u = u.reshape(batch, *u.shape[-2:])
        flat_state = None if state is None else state.reshape(math.prod(states_shape), *self._state_sizes)
        if lengths is not None:
            u, lengths = without_padding(u, lengths, transposed=True)
        gate = None
        if self.input_gate is not None:
            gate = self.input_gate(u)
            gate = gate.reshape(*batch_shape, *gate.shape[1:])
        if self.input_linear is not None:
            u = self.input_linear(u)
            if lengths is not None:
                u, _ = without_padding(u, lengths, transposed=True)
        y, next_state = self._convolve(u, flat_state, rate, lengths, cu_seqlens)
        y = self._mix(y.reshape(*batch_shape, *y.shape[1:]), gate)
        return y, None if next_state is None else next_state.reshape(*states_shape, *next_state.shape[-2:])

    @property
    def _ssm(self) -> DiagonalSSM | DPLRSSM:
        """What the systems are made of."""
        return self.kernel.kernel

    @property
    def _packs(self) -> bool:
        """Whether packed sequences can be convolved as they lie."""
        return self.causal and self.l_max is None

    def _convolve(
        self,
        u: Tensor,
        state: Tensor | None,
        rate: Any,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, H, L) to (B, C, H, L), skip included, and the next state if one was given."""
        length, taps = u.shape[-1], None if self.l_max is None else self._taps(rate)
        if taps is not None and state is not None and length > taps:
            raise ValueError(
                f"a kernel cut off at l_max={self.l_max} has no state: the length of x with a state must be at most "
                f"{taps}, got {length}"
            )
        if self.constants is None and isinstance(rate, Tensor) and values.by_element(rate, u):
            if taps is not None or self.bidirectional or cu_seqlens is not None:
                raise ValueError(
                    "rate for each element needs a causal layer without l_max, and sequences that are not packed"
                )
            return convolve_unevenly(self.system(), u, rate, self.D, state, lengths)
        if self.constants is not None:
            self._unit_rate(rate)
            return self.constants.convolve(u, state, lengths, cu_seqlens)
        ssm = self._ssm
        system_for = ssm.system if torch.is_grad_enabled() else ssm.kept_system
        system = system_for(rate, length if taps is None else min(length, taps))
        return convolve(
            system,
            u,
            self.D,
            state,
            lengths,
            self.conv,
            taps=taps,
            bidirectional=self.bidirectional,
            cu_seqlens=cu_seqlens,
        )

    def _taps(self, rate: float | Tensor) -> int | None:
        """After how many the kernel is cut off; None if it is not."""
        if self.constants is not None:
            return None if self.constants.kernel is None else self.constants.kernel.shape[-1]
        if self.l_max is None:
            return None
        values.sampling_rate(rate)
        if isinstance(rate, Tensor) and internals.is_wrapped(rate):
            raise ValueError(
                f"a kernel cut off at l_max={self.l_max} has one length: rate must be one number for the whole call"
            )
        return round(self.l_max / float(rate))

    def _constants(self, rate: float) -> FrozenSystem:
        return FrozenSystem(
            self.system(rate), self.D, taps=self._taps(rate), bidirectional=self.bidirectional
        )

    def freeze_here(self, rate: float) -> None:
        super().freeze_here(rate)
        self.register_module("kernel", None)

    def unsplit_reason(self) -> str | None:
        if self.constants is None and not self._ssm.causal:
            return f"a dss {type(self).__name__} is not causal"
        if self.l_max is not None:
            return f"a kernel cut off at l_max={self.l_max} has no state"
        return super().unsplit_reason()

    def system(self, rate: float = 1.0, length: int | None = None) -> System:
        """The discrete system at the given sampling rate; for calls of that length if "dss" has no ``l_max``."""
        if self.constants is not None:
            raise self._frozen_error()
        return self._ssm.system(rate, length)

    def _mix(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """(..., C, H, L) to the output; gate is (..., channels, L)."""
        y = self.dropout(self.activation(self._hyper(y).flatten(-3, -2)))
        y = self.output_linear(y if self.transposed else y.mT)
        if self.output_gate is None or gate is None:
            return y
        return self.output_gate(y * (gate if self.transposed else gate.mT))

    def _hyper(self, y: Tensor) -> Tensor:
        """(..., C, H, L): the first half of the channels times the activated second half, if the layer has both."""
        if self.hyper_activation is None:
            return y
        y, factor = y.chunk(2, -3)
        return y * self.hyper_activation(factor)

    def step(self, x: Tensor, state: Tensor | None = None, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Map one time step ``(..., d_model)``; without a state, from the default one. Returns the next state."""
        self._require_causal("be stepped")
        inputs.of_width(x, self.d_model)
        if state is None:
            state = self.default_state(*x.shape[:-1], device=x.device)
        self._check_state(state, x.shape[:-1])
        gate = None if self.input_gate is None else self.input_gate(x.unsqueeze(-1))
        u = x if self.input_linear is None else self.input_linear(x.unsqueeze(-1)).squeeze(-1)
        if self.constants is None:
            y, next_state = ops.ssm_step(state, u, *self.system(rate).step_parameters(self.D))
        else:
            self._unit_rate(rate)
            y, next_state = self.constants.step(u, state)
        return self._mix(y.unsqueeze(-1), gate).squeeze(-1 if self.transposed else -2), next_state

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        inside: list[Stage] = [
            *pointwise(self.input_linear or nn.Identity(), transposed=True),
            self._recurrence(rate),
        ]
        inside += self._hyper_stages()
        for part in (self.activation, self.dropout):
            inside += pointwise(part, transposed=True)
        inside += pointwise(self.output_linear, self.transposed)
        if self.input_gate is None or self.output_gate is None:
            return inside
        of_input = [Take(1, self.d_model), *pointwise(self.input_gate, transposed=True)]
        behind = pointwise(self.output_gate, self.transposed)
        return [Open(2), *inside, Put(0), *of_input, Multiply(0), *behind, Close(2)]

    def _hyper_stages(self) -> list[Stage]:
        """What ``_hyper`` does."""
        if self.hyper_activation is None:
            return []
        each = pointwise(self.hyper_activation, transposed=True)
        if not all(isinstance(stage, Elementwise) for stage in each):  # of the heads of each channel
            return [Pointwise(self._hyper_stage)]
        half = self.channels * self.heads
        first, second = Kept(0, half), [Take(1, 2 * half), Kept(half, half), *each]
        return [Open(2), first, Put(0), *second, Multiply(0), Close(2)]

    def _recurrence(self, rate: float) -> Stage:
        if self.constants is None:
            return Recurrence(self.system(rate), self.D)
        self._unit_rate(rate)
        return FrozenRecurrence(self.constants)

    def _hyper_stage(self, y: Tensor) -> Tensor:
        return self._hyper(y.unflatten(-1, (-1, self.heads)).unsqueeze(-1)).flatten(-3)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros ``(*batch_shape, heads, d_state / 2)``, complex; real and twice as wide once frozen."""
        self._require_causal("have a state")
        return super().default_state(*batch_shape, device=device)

    def awaited_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Of a bidirectional layer the states before and behind a part, ``(*batch_shape, 2, heads, d_state / 2)``."""
        return super().default_state(*batch_shape, device=device)

    def _check_state(self, state: Tensor | Awaited, batch_shape: torch.Size) -> None:
        if not isinstance(state, Awaited):
            self._require_causal("be given a state")
        super()._check_state(state, batch_shape)

    @property
    def _sides(self) -> tuple[int, ...]:
        return (2,) if self.bidirectional else ()

    def _weight(self) -> Tensor:
        return self.D if self.constants is None else self.constants.taps

    def _kind(self) -> str:
        return "bidirectional" if self.bidirectional else "dss"

    def _require_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"a {self._kind()} {type(self).__name__} is not causal: it cannot {what}")
