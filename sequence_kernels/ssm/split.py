"""The convolution of a part of sequences whose state is awaited, each product of its gradient made once.

A part is passed twice: for its end state from zeros, which is exchanged, and from the state before it that comes back.
Backward it is the same, mirrored: first the gradient of the state before the part, from the outputs alone, which is
exchanged; then all gradients at once, given that of the state behind the part. So the pass for the end state has no
gradient of its own: as ``after = A^L before + end``, the gradient of ``end`` goes in where that of ``after`` does, and
what it gives of A^L is that of the ``before`` of the part behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops.layouts import interleaved, paired
from .system import ChunkMatrices

_ssm_conv = torch.ops.sequence_kernels.ssm_conv.default
_ssm_conv_backward = torch.ops.sequence_kernels.ssm_conv_backward.default

#: Elements whose order is turned at once, so that they are still in cache when they are read; whole chunks.
TURNED = 1 << 14

#: From the state before all parts and the end state of this one, to the states before this part and behind the last:
#: complex ``(B, H, N)``.
Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def convolve_part(
    u: Tensor, matrices: ChunkMatrices, d: Tensor | None, start: Tensor, passed: Pass, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of a part ``(B, C, H, L)``, and the states before it and behind the last, complex as ``start``."""
    y, before, after = _Part.apply(passed, backend, u, *matrices, d, interleaved(start))
    return y, paired(before), paired(after)


class _Part(Function):
    @staticmethod
    def forward(
        ctx: Any, passed: Pass, backend: str, u: Tensor, *given: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        *matrices, d, start = given
        end = end_state(u, ChunkMatrices(*matrices), backend)
        with torch.enable_grad():
            ctx.ends = start.detach().requires_grad_(), end.requires_grad_()
            ctx.states = _passed(passed, ctx.ends)
        before, after = (state.detach() for state in ctx.states)
        y, _ = _ssm_conv(u, *matrices, d, before, None, backend)
        ctx.save_for_backward(u, *given, before)
        ctx.passed, ctx.backend = passed, backend
        return y, before, after

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_before: Tensor, g_after: Tensor) -> tuple[Tensor | None, ...]:
        u, *matrices, d, start, before = ctx.saved_tensors
        ends, states, again = ctx.ends, ctx.states, torch.is_grad_enabled()
        if again:  # made once more, so that they depend on what was given
            end = end_state(u, ChunkMatrices(*matrices), ctx.backend)
            ends = tuple(t if t.requires_grad else t.detach().requires_grad_() for t in (start, end))
            states = _passed(ctx.passed, ends)
            before = states[0]
        g_before = g_before + _start_gradient(g, ChunkMatrices(*matrices), ctx.backend)
        g_start, g_end = torch.autograd.grad(
            states, ends, (g_before, g_after), retain_graph=True, create_graph=again, materialize_grads=True
        )
        found = _ssm_conv_backward(g, g_end, u, *matrices, d, before, None, ctx.backend)
        return None, None, *found[:5], None if d is None else found[5], g_start


def _passed(passed: Pass, ends: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    start, end = map(paired, ends)
    before, after = passed(start, end)
    return interleaved(before), interleaved(after)


def end_state(u: Tensor, matrices: ChunkMatrices, backend: str, start: Tensor | None = None) -> Tensor:
    """The state that inputs ``(B, H, L)`` leave, from zeros or a start, real ``(B, H, S)``."""
    taps, e_out, e_in, a_powers = matrices
    return _ssm_conv(u, taps[:0], e_out[:0], e_in, a_powers, None, start, None, backend)[1]


def _start_gradient(gradient: Tensor, matrices: ChunkMatrices, backend: str) -> Tensor:
    """Of the state before a part, from that of its outputs: the end state of the adjoint system, from last to first."""
    taps, e_out, _, a_powers = matrices
    powers = a_powers.conj() if a_powers.is_complex() else a_powers.mT
    pieces = gradient.split(TURNED, -1) if backend == "cpu" else (gradient,)
    total = torch.zeros_like(e_out[:1, :, :, 0]).expand(len(gradient), -1, -1)
    for channel, read in enumerate(e_out.flip(-1).mT):
        state = torch.zeros_like(total)
        for piece in reversed(pieces):
            turned = piece[:, channel].flip(-1)
            state = end_state(turned, ChunkMatrices(taps, e_out, read, powers), backend, state)
        total = total + state
    return total
