"""The S4 layer: a state-space convolution, a skip, a nonlinearity and a position-wise linear map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..module import SequenceModule
from ..ops import checks
from ..ssm import DPLRSSM, DiagonalSSM, System, diagonal_init, dplr_init
from ..ssm.parameters import initial_log_dt
from ..ssm.system import interleaved, paired
from ..stages import Recurrence, Stage, pointwise
from .components import activation_module, dropout_module, linear_activation

#: Elements that one chunk of the convolution holds; making longer ones' matrices costs more than they save.
_CHUNK = 32


class SSKernel(nn.Module):
    """The state-space model of an S4 layer: H heads with C channels, in ``kernel``, initialised by ``measure``.

    Arguments and parameter names are those of ESPnet's class of this name. ``mode`` is "nplr" (diagonal plus low
    rank, discretised by the bilinear transform) or "diag" (with ``disc``). ``n_ssm`` copies of the state matrix are
    shared by the heads; each head has its own by default. ``lr`` is one learning rate for the groups "dt", "A" and
    "B", or a dict of them; 0 makes the group's parameters buffers.
    """

    kernel: DiagonalSSM | DPLRSSM

    def __init__(
        self,
        H: int,
        N: int = 64,
        l_max: int | None = None,
        measure: str | Sequence[str] = "legs",
        rank: int = 1,
        channels: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        deterministic: bool = False,
        lr: float | dict[str, float] | None = None,
        mode: str = "nplr",
        n_ssm: int | None = None,
        measure_args: dict[str, Any] | None = None,
        real_type: str = "exp",
        **mode_args: Any,
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {tuple(_MODES)}, got {mode!r}")
        copies = H if n_ssm is None else n_ssm
        if copies < 1 or H % copies:
            raise ValueError(f"n_ssm must divide the width {H}, got {n_ssm}")
        dtype = torch.get_default_dtype()
        c = torch.randn(channels, H, N // 2, dtype=dtype.to_complex())
        if deterministic:
            c = torch.zeros_like(c)
            c[..., :1] = 1
        log_dt = initial_log_dt(H, dt_min, dt_max, dtype, deterministic)
        make = _MODES[mode]
        self.kernel = make(
            measure,
            N,
            rank,
            copies,
            c,
            log_dt,
            l_max,
            measure_args or {},
            real_type=real_type,
            lr=lr,
            **mode_args,
        )

    def system(self, rate: float = 1.0) -> System:
        """The discrete system at the given sampling rate."""
        return self.kernel.system(rate)


def _nplr(
    measure: str | Sequence[str],
    d_state: int,
    rank: int,
    copies: int,
    c: Tensor,
    log_dt: Tensor,
    l_max: int | None,
    measure_args: dict[str, Any],
    **options: Any,
) -> DPLRSSM:
    w, p, b = dplr_init(measure, d_state, rank, copies, dtype=c.dtype, **measure_args)
    return DPLRSSM(w, p, b, c, log_dt, **options)


def _diag(
    measure: str | Sequence[str],
    d_state: int,
    rank: int,
    copies: int,
    c: Tensor,
    log_dt: Tensor,
    l_max: int | None,
    measure_args: dict[str, Any],
    **options: Any,
) -> DiagonalSSM:
    a, b = diagonal_init(measure, d_state, copies, dtype=c.dtype, **measure_args)
    return DiagonalSSM(a, b, c, log_dt, l_max=l_max, **options)


_MODES: dict[str, Callable[..., DiagonalSSM | DPLRSSM]] = {"nplr": _nplr, "diag": _diag}


class S4(SequenceModule):
    """Structured state-space sequence layer (Gu et al., 2021), with ESPnet's arguments and parameter names.

    ``y = output_linear(dropout(activation(K * x + D x)))`` with a convolution kernel K a head and channel that comes
    from a linear state-space model.

    Args:
        d_model: width H of input and output.
        d_state: size N of the state of a head, conjugates included; even.
        l_max: the kernel is cut off after so many taps. A longer sequence is then a plain convolution without a
            state, and cannot be given one.
        channels: copies C of the readout.
        bidirectional: the kernel looks both ways; such a layer is not causal and cannot be stepped.
        activation, postact: nonlinearities after the convolution and after the linear map.
        dropout, tie_dropout: dropout after the activation; tied: one mask for all positions.
        transposed: sequences are ``(batch, d_model, length)``, as by default in ESPnet; else
            ``(batch, length, d_model)``.
        conv: "chunked" (``ops.ssm_conv``) or "fft" (the kernel of full length, ``ops.fft_conv``); a call with a
            state is chunked in either case.
        **kernel_args: see ``SSKernel``.

    The state is complex, ``(*batch_shape, d_model, d_state / 2)``.
    """

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
        conv: str = "chunked",
        **kernel_args: Any,
    ) -> None:
        super().__init__()
        for name, value in (("hyper_act", hyper_act), ("bottleneck", bottleneck), ("gate", gate)):
            if value is not None:
                raise NotImplementedError(f"{name}={value!r} is not implemented yet; leave it None")
        if conv not in ("chunked", "fft"):
            raise ValueError(f"conv must be 'chunked' or 'fft', got {conv!r}")
        if activation == "glu":
            raise ValueError("activation='glu' would halve the width before output_linear; use postact='glu'")
        if l_max is not None and l_max < 1:
            raise ValueError(f"l_max must be at least 1, got {l_max}")
        self.d_model = self.d_output = d_model
        self.n = d_state // 2
        self.l_max = l_max
        self.channels = channels
        self.bidirectional = bidirectional
        self.causal = not bidirectional
        self.transposed = transposed
        self.conv = conv
        self.D = nn.Parameter(torch.randn(channels, d_model))
        self.kernel = SSKernel(
            d_model, d_state, l_max, channels=channels * (2 if bidirectional else 1), **kernel_args
        )
        self.activation = activation_module(activation, dim=-2)
        self.dropout = dropout_module(dropout, tied=tie_dropout, transposed=True)
        self.output_linear = linear_activation(d_model * channels, d_model, postact, transposed=transposed)

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        rate: float = 1.0,
        lengths: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Map a batch of sequences.

        Args:
            x: ``(..., length, d_model)``, or ``(..., d_model, length)`` if transposed.
            state: ``(..., d_model, d_state / 2)``, what an earlier part of the sequences left.
            rate: sampling step of the input, in units of the one that the model was trained with.
            lengths: how many elements of each sequence are real: an int, or integers ``(batch,)``. The rest is taken
                as zero, and the state returned is the one after the last real element. Outputs there mean nothing.

        Returns:
            The output in the shape of ``x``, and the next state, None if none was given.
        """
        u = x if self.transposed else x.mT
        if u.dim() < 2 or u.shape[-2] != self.d_model:
            form = "(..., d_model, length)" if self.transposed else "(..., length, d_model)"
            raise ValueError(f"x must have shape {form} with d_model={self.d_model}, got {tuple(x.shape)}")
        if state is not None:
            self._require_causal("be given a state")
            self._check_state(state, u.shape[:-2])
        batch_shape, length = u.shape[:-2], u.shape[-1]
        batch = math.prod(batch_shape)
        u = u.reshape(batch, *u.shape[-2:])
        flat_state = None if state is None else state.reshape(batch, *state.shape[-2:])
        if lengths is not None:
            lengths = _lengths(lengths, u)
            u = torch.where(torch.arange(length, device=u.device) < lengths.view(-1, 1, 1), u, 0)
        y, next_state = self._convolve(u, flat_state, rate, lengths)
        y = self._mix(y.reshape(*batch_shape, self.channels * self.d_model, length))
        return y, None if next_state is None else next_state.reshape(*batch_shape, *next_state.shape[-2:])

    def _convolve(
        self, u: Tensor, state: Tensor | None, rate: float, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, H, L) to (B, C, H, L), skip included, and the next state if one was given."""
        length = u.shape[-1]
        taps = length if self.l_max is None else round(self.l_max / rate)
        truncated = length > taps
        if truncated and state is not None:
            raise ValueError(
                f"a kernel cut off at l_max={self.l_max} has no state: the length of x with a state must be at most "
                f"{taps}, got {length}"
            )
        if truncated or (self.conv == "fft" and state is None):
            with torch.autocast(u.device.type, enabled=False):
                k = self.kernel.system(rate).kernel(min(length, taps))
            return ops.fft_conv(u, k, self.D.to(k.dtype), bidirectional=self.bidirectional), None
        with torch.autocast(u.device.type, enabled=False):
            system = self.kernel.system(rate)
            tail = state is not None
            matrices = system.channels(0, self.channels).chunk_matrices(_CHUNK, tail=tail)
            if self.bidirectional:
                reverse = system.channels(self.channels, 2 * self.channels).chunk_matrices(_CHUNK, tail=tail)
        skip = self.D.to(matrices.taps.dtype)
        if self.bidirectional:
            y, _ = ops.ssm_conv(u, *matrices, d=skip)
            ahead, _ = ops.ssm_conv(u.flip(-1), *reverse)
            return y + nn.functional.pad(ahead.flip(-1)[..., 1:], (0, 1)), None
        if state is None:
            return ops.ssm_conv(u, *matrices, d=skip)[0], None
        y, final = ops.ssm_conv(u, *matrices, d=skip, initial_state=interleaved(state), lengths=lengths)
        return y, paired(final)

    def _mix(self, y: Tensor) -> Tensor:
        """(..., C H, L) to the output."""
        y = self.dropout(self.activation(y))
        return self.output_linear(y if self.transposed else y.mT)

    def step(
        self, x: Tensor, state: Tensor | None = None, rate: float = 1.0, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Map one time step ``(..., d_model)``; without a state, from the default one. Returns the next state."""
        self._require_causal("be stepped")
        if x.dim() < 1 or x.shape[-1] != self.d_model:
            raise ValueError(f"x must have shape (..., d_model={self.d_model}), got {tuple(x.shape)}")
        if state is None:
            state = self.default_state(*x.shape[:-1], device=x.device)
        self._check_state(state, x.shape[:-1])
        with torch.autocast(x.device.type, enabled=False):
            y, next_state = self.kernel.system(rate).step(state, x, self.D.to(state.real.dtype))
        return self._mix_step(y.flatten(-2)), next_state

    def _mix_step(self, y: Tensor) -> Tensor:
        """(..., C H) to the output."""
        y = self.dropout(self.activation(y.unsqueeze(-1)))
        return self.output_linear(y).squeeze(-1) if self.transposed else self.output_linear(y.squeeze(-1))

    def stages(self, rate: float = 1.0, **kwargs: Any) -> list[Stage]:
        mix = pointwise(self.activation, transposed=True) + pointwise(self.output_linear, self.transposed)
        return [Recurrence(self.kernel.system(rate), self.D), *mix]

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros ``(*batch_shape, d_model, d_state / 2)``, complex, on the device of the parameters by default."""
        self._require_causal("have a state")
        parameter = self.D
        dtype = torch.complex128 if parameter.dtype == torch.float64 else torch.complex64
        return torch.zeros(*batch_shape, self.d_model, self.n, dtype=dtype, device=device or parameter.device)

    @property
    def state_to_tensor(self) -> Callable[[Tensor], Tensor]:
        """A state as real numbers ``(*batch_shape, d_state)``: real and imaginary parts of all heads."""
        return lambda state: interleaved(state).flatten(-2)

    @property
    def d_state(self) -> int:
        """Real numbers in the state of one sequence: ``d_model`` times the state size of a head."""
        return self.d_model * self.n * 2

    def _require_causal(self, what: str) -> None:
        if not self.causal:
            raise ValueError(f"a bidirectional {type(self).__name__} is not causal: it cannot {what}")

    def _check_state(self, state: Tensor, batch_shape: torch.Size) -> None:
        expected = (*batch_shape, self.d_model, self.n)
        if not isinstance(state, Tensor) or not state.is_complex():
            raise TypeError(f"state must be a complex tensor of shape {expected}, got {_kind(state)}")
        if state.shape != expected:
            raise ValueError(f"state must have shape {expected}, got {tuple(state.shape)}")


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def _lengths(lengths: Tensor | int | Sequence[int], u: Tensor) -> Tensor:
    """Lengths as integers (B,) on the device of u."""
    lengths = torch.as_tensor(lengths, device=u.device)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.dim() > 1 or (lengths.dim() == 1 and lengths.shape[0] not in (1, u.shape[0])):
        raise ValueError(f"lengths must have shape () or (batch={u.shape[0]},), got {tuple(lengths.shape)}")
    lengths = lengths.to(torch.int64).expand(u.shape[0])
    checks.lengths("lengths", lengths, u.shape[-1])
    return lengths
