"""S4 layers of other libraries on our ops, with their own parts and parameters, in their places in models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..layers import S4
from ..ssm import convolve
from ..stepping.stages import Pointwise, Stage
from . import systems


class _Served(S4):
    """An S4 layer of another library whose convolution, state and steps are ours.

    It has the other's parts, parameters, buffers and hooks, under their names: what is put into one is in both. A
    subclass says where they are, and what comes after the convolution.
    """

    def __init__(self, original: nn.Module, source: systems.Systems, skip: Tensor, l_max: int | None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(original.__dict__)
        self.__dict__["original"] = original  # no part of this one
        self._source = source
        self.constants = self.conv = None
        self.l_max = l_max
        self.heads, self.n = skip.shape[-1], source.size
        self.state_shape = (self.heads, self.n)
        readouts, copies = 1 if skip.dim() == 1 else len(skip), source.channels
        if copies not in (readouts, 2 * readouts):
            raise ValueError(f"C has {copies} channels, but D {readouts}")
        self.bidirectional = copies == 2 * readouts
        if self.bidirectional != bool(getattr(original, "bidirectional", False)):
            raise ValueError(f"C has {copies} channels and D {readouts}, but bidirectional says otherwise")
        self.causal = not self.bidirectional and source.causal

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Whether a layer with the parts of this kind can be one."""
        return True

    def _complete(self) -> None:
        """The parts of our layer that the other one does not have."""
        for name in ("input_linear", "input_gate", "output_gate", "hyper_activation"):
            if not hasattr(self.original, name):
                setattr(self, name, None)

    @property
    def _ssm(self) -> Any:
        return self._source

    def forward(
        self,
        x: Tensor,
        state: Tensor | None = None,
        rate: Any = 1.0,
        lengths: Any = None,
        cu_seqlens: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``S4``; ``others`` mean nothing, as in the layer that this one stands for."""
        batch = x.shape[:-2] if cu_seqlens is None else (len(cu_seqlens) - 1,)
        return super().forward(x, _for_all(state, batch), rate, lengths, cu_seqlens)

    def _convolve(
        self,
        u: Tensor,
        state: Tensor | None,
        rate: Any,
        lengths: Tensor | None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        alone = torch.is_grad_enabled() and state is None and cu_seqlens is None and self.constants is None
        if alone and type(rate) is float and rate == 1.0 and u.shape[-1]:
            tied = self._source.tied(u.shape[-1])
            if tied is not None:
                return convolve(
                    tied, u, self.D, conv="fft", taps=self.l_max, bidirectional=self.bidirectional
                )
        return super()._convolve(u, state, rate, lengths, cu_seqlens)

    def step(
        self, x: Tensor, state: Tensor | None = None, rate: Any = 1.0, **others: Any
    ) -> tuple[Tensor, Tensor]:
        """As ``S4``; one state of a batch of 1 serves all rows, as ESPnet's decoder hands it on."""
        return super().step(x, _for_all(state, x.shape[:-1]), rate)

    def setup_step(self, **others: Any) -> None:  # type: ignore[override]
        """Nothing: a step needs no preparation, in whatever ``mode``."""


def _for_all(state: Any, batch_shape: Any) -> Any:
    """The state of each row: one of a batch of 1 is that of all."""
    if isinstance(state, Tensor) and state.dim() == 3 and len(state) == 1 and len(batch_shape) == 1:
        return state.expand(batch_shape[0], -1, -1)
    return state


class _EspnetLayer(_Served):
    """``S4`` of ESPnet and of s4 v3 and v2: all that surrounds the convolution has our layer's names."""

    def __init__(self, original: Any) -> None:
        inner = original.kernel.kernel
        if original.D.dim() != 2:
            raise ValueError(
                f"its D is {tuple(original.D.shape)}, not (channels, heads): another layer around S4's kernel, as H3"
            )
        if isinstance(original.activation, nn.GLU):
            raise ValueError("activation='glu' halves the length of the sequence there")
        if hasattr(inner, "P") and getattr(inner, "bandlimit", None) is not None:
            raise ValueError(
                f"bandlimit={inner.bandlimit} of nplr depends on the length of the first call there"
            )
        super().__init__(original, systems.of_espnet(inner), original.D, getattr(original, "L", None))
        bottleneck = getattr(original, "bottleneck", None)
        width = original.d_model if bottleneck else original.D.shape[-1]  # it is d_model, H or h there
        self.d_model = self.d_output = width
        self._complete()


class _DSSLayer(_Served):
    """``DSS`` of its authors: what surrounds the convolution has our layer's names."""

    def __init__(self, original: Any) -> None:
        source = systems.Softmax(original.kernel)
        super().__init__(original, source, original.D, original.max_kernel_length)
        self.d_model = self.d_output = original.D.shape[-1]
        self._complete()


class _Block(_Served):
    """A layer whose own parts do what comes after the convolution, in ``_after``."""

    def _after(self, y: Tensor) -> Tensor:
        """(..., C, H, L) to the output, laid out as the layer's."""
        raise NotImplementedError

    def _mix(self, y: Tensor, gate: Tensor | None) -> Tensor:
        return self._after(y)

    def stages(self, rate: float = 1.0) -> list[Stage]:  # type: ignore[override]
        return [self._recurrence(rate), Pointwise(self._element)]

    def _element(self, y: Tensor) -> Tensor:
        y = y.unflatten(-1, (-1, self.heads)).unsqueeze(-1)
        return self._after(y).squeeze(-1 if self.transposed else -2)


class _Convolution(_Block):
    """``FFTConv`` of s4 v4, which is the layer inside an ``S4Block``."""

    drop: nn.Module
    input_linear = input_gate = output_gate = hyper_activation = None

    def __init__(self, original: Any) -> None:
        kernel = original.kernel
        if hasattr(kernel, "P") and getattr(kernel, "bandlimit", None) is not None:
            raise ValueError(
                f"bandlimit={kernel.bandlimit} of dplr depends on the length of the first call there"
            )
        super().__init__(original, systems.of_v4(kernel), original.D, original.l_max)
        self.d_model, self.d_output = original.D.shape[-1], original.d_output
        self.transposed, self.swap_channels = original.transposed, original.swap_channels
        if not isinstance(original.drop_kernel, nn.Identity):
            raise ValueError("drop_kernel, dropout of the kernel's taps, has no counterpart here")

    def _after(self, y: Tensor) -> Tensor:
        y = y.transpose(-3, -2) if self.swap_channels else y
        y = self.drop(y.flatten(-3, -2))
        return self.activation(y if self.transposed else y.mT)


class _MinimalLayer(_Block):
    """``S4D`` of s4's ``s4d.py`` and of the many copies of it."""

    input_linear = input_gate = output_gate = hyper_activation = None

    def __init__(self, original: Any) -> None:
        skip = original.D
        super().__init__(original, systems.Minimal(original.kernel), skip, None)
        self.d_model = self.d_output = len(skip)

    @property
    def D(self) -> Tensor:  # type: ignore[override]  # noqa: N802 (the layer's name)
        return self._parameters["D"].unsqueeze(0)  # type: ignore[union-attr]

    def _after(self, y: Tensor) -> Tensor:
        y = self.dropout(self.activation(y.flatten(-3, -2)))
        y = self.output_linear(y.reshape(-1, *y.shape[-2:])).reshape(*y.shape[:-2], -1, y.shape[-1])
        return y if self.transposed else y.mT


#: What each layer is recognised by, and what serves it.
KINDS: tuple[tuple[tuple[str, ...], type[_Served]], ...] = (
    (("kernel.kernel.log_dt", "kernel.kernel.C", "D"), _EspnetLayer),
    (("kernel.inv_dt", "kernel.A_real", "D", "drop"), _Convolution),
    (("kernel.log_dt", "kernel.W", "kernel.version", "D"), _DSSLayer),
    (("kernel.log_A_real", "kernel.log_dt", "D"), _MinimalLayer),
)
