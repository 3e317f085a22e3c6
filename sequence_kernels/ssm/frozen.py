"""A discrete system whose matrices are constants, for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import internals, ops
from ..ops import checks
from ..ops.dispatch import choose
from ..ops.layouts import as_complex, interleaved, paired
from ..ops.ssm_conv import scanned
from .convolve import ANY_LENGTH, chunk_matrices
from .system import StepParameters, System

_ssm_conv = torch.ops.sequence_kernels.ssm_conv.default
_ssm_conv_packed = torch.ops.sequence_kernels.ssm_conv_packed.default


class FrozenSystem(nn.Module):
    """What ``convolve`` and ``ops.ssm_step`` compute with a system and its skip, from buffers of real numbers.

    A state is real, ``(..., H, 2 N)``: real and imaginary parts, interleaved. It computes in the precision of the
    system that it is made of: moving it to a device moves it, and another dtype is refused.

    Args:
        system: of H heads with C channels; with 2 C if ``bidirectional``.
        d: real skip ``(C, H)``, of any dtype; None for none.
        chunk: elements of a chunk, a power of two.
        taps, bidirectional: as in ``convolve``.
    """

    taps: Tensor
    e_out: Tensor
    e_in: Tensor
    a_powers: Tensor
    d: Tensor | None
    kernel: Tensor | None
    b: Tensor

    def __init__(
        self,
        system: System,
        d: Tensor | None = None,
        *,
        chunk: int = ANY_LENGTH,
        taps: int | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.dense = system.dense
        d = None if d is None else d.to(checks.REAL_OF[system.c.dtype])
        step = system.step_parameters(d)._asdict() | chunk_matrices(system, chunk)._asdict()
        for name, value in step.items():
            self._keep(name, value)
        self._keep("kernel", None if taps is None else system.kernel(taps))

    def _keep(self, name: str, value: Tensor | None) -> None:
        """As real numbers: of complex ones pairs, ``(..., 2)``."""
        if value is not None:
            value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
            value = value.detach().clone()
        self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenSystem:
        made = {name: fn(value) for name, value in self._buffers.items() if value is not None}
        if made["taps"].dtype != self.taps.dtype:
            raise TypeError(
                f"a frozen system computes in {self.taps.dtype} and cannot become {made['taps'].dtype}: convert the "
                "module before it is frozen"
            )
        for name, value in made.items():  # what is wider stays so
            before = self._buffers[name]
            assert before is not None
            self._buffers[name] = value if value.dtype == before.dtype else before.to(value.device)
        return self

    def convolve(
        self,
        u: Tensor,
        state: Tensor | None = None,
        lengths: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, H, L)`` to ``(B, C, H, L)`` and the next state, None if none was given: as ``convolve``."""
        self._check(u, state)
        if cu_seqlens is not None:
            y, final = self._packed_in_chunks(u.squeeze(0), state, cu_seqlens)
            return y.unsqueeze(0), None if state is None else final
        if (
            self.kernel is not None
            and (state is None or self.bidirectional)
            and u.shape[-1] > self.kernel.shape[-1]
        ):
            return ops.fft_conv(u, self.kernel, self.d, bidirectional=self.bidirectional), None
        if not self.bidirectional:
            y, final = self._in_chunks(u, slice(None), self.d, state, lengths)
            return y, None if state is None else final
        half = len(self.taps) // 2
        back, _ = self._in_chunks(u, slice(half), self.d)
        ahead, _ = self._in_chunks(u.flip(-1), slice(half, None), None)
        return back + F.pad(ahead.flip(-1)[..., 1:], (0, 1)), None

    def _in_chunks(
        self,
        u: Tensor,
        channels: slice,
        d: Tensor | None,
        state: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        taps, e_out = self.taps[channels], self.e_out[channels]
        if internals.exports_to_onnx():
            if lengths is not None or self.kernel is not None:
                raise ValueError(
                    "neither lengths nor a kernel that is cut off at l_max can be exported to ONNX"
                )
            return scanned.ssm_conv(u, taps, e_out, self.e_in, self.a_powers, d, state)
        a_powers = self.a_powers if self.dense else torch.view_as_complex(self.a_powers)
        return _ssm_conv(u, taps, e_out, self.e_in, a_powers, d, state, lengths, choose("ssm_conv", None, u))

    def _packed_in_chunks(self, u: Tensor, state: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        if internals.exports_to_onnx():
            raise ValueError("cu_seqlens cannot be exported to ONNX: export whole sequences")
        a_powers = self.a_powers if self.dense else as_complex(self.a_powers)
        backend = choose("ssm_conv_packed", None, u)
        return _ssm_conv_packed(
            u, self.taps, self.e_out, self.e_in, a_powers, self.d, state, cu_seqlens, backend
        )

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., H)`` to ``(..., C, H)`` and the next state: as ``ops.ssm_step``."""
        self._check(u, state)
        if internals.exports():
            rows = u.reshape(-1, u.shape[-1], 1), state.reshape(-1, *state.shape[-2:])
            y, next_state = self._in_chunks(rows[0], slice(None), self.d, rows[1])
            return y.reshape(*u.shape[:-1], *y.shape[1:3]), next_state.reshape(state.shape)
        y, next_state = ops.ssm_step(paired(state), u, *self.step_parameters())
        return y, interleaved(next_state)

    def step_parameters(self) -> StepParameters:
        """What ``ops.ssm_step`` needs."""
        found: dict[str, Any] = {name: self._buffers[name] for name in StepParameters._fields}
        pairs = {k: as_complex(v) for k, v in found.items() if v is not None and k != "d"}
        return StepParameters(**(found | pairs))

    def _check(self, u: Tensor, state: Tensor | None) -> None:
        real = self.taps.dtype
        if u.dtype not in ((real,) if real == torch.float64 else (real, *checks.HALF)):
            raise TypeError(f"x must be {real} as the frozen system is, got {u.dtype}")
        if state is not None and state.dtype != real:
            raise TypeError(f"state must be {real} as the frozen system is, got {state.dtype}")
        for name, value in (("x", u), ("state", state)):
            if value is not None and value.device != self.taps.device:
                raise ValueError(
                    f"{name} is on {value.device}, but the frozen system is on {self.taps.device}"
                )
