"""What a discrete state-space model is to a layer: a kernel, chunk matrices, and a step."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..ops import checks


class ChunkMatrices(NamedTuple):
    """The matrices of ``ops.ssm_conv``, in its order and shapes."""

    taps: Tensor
    e_out: Tensor
    e_in: Tensor
    a_powers: Tensor


class StepParameters(NamedTuple):
    """The parameters of ``ops.ssm_step``, in its order and shapes."""

    a_minus_one: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None = None
    p: Tensor | None = None
    q: Tensor | None = None


class System(Protocol):
    """A discrete linear time-invariant system of H heads, C channels and N conjugate pairs of states."""

    dense: ClassVar[bool]  # whether the powers of A in its chunk matrices are

    @property
    def c(self) -> Tensor:
        """Readouts ``(C, H, N)``, whose dtype is that of the results."""

    def kernel(self, length: int) -> Tensor:
        """The first taps ``K[l] = 2 Re(C A^l B)`` of the kernel, ``(C, H, length)``."""

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``a``, ``p``, ``q`` and ``b`` of ``ops.ssm_chunk``, complex128."""

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        """What ``ops.ssm_step`` needs, with the skip d (in any dtype)."""

    def channels(self, start: int, stop: int) -> System:
        """The same system with some of its output channels."""


def interleaved(z: Tensor) -> Tensor:
    """Complex ``(..., N)`` as real ``(..., 2 N)``: re, im, re, im, ..."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def paired(x: Tensor) -> Tensor:
    """The inverse of ``interleaved``, a view."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def skip(d: Tensor | None, c: Tensor) -> Tensor | None:
    """d in the precision of the readout c."""
    return None if d is None else d.to(checks.REAL_OF[c.dtype])


def readout(c: Tensor) -> Tensor:
    """The real row ``(..., 2 N)`` whose product with an interleaved state is ``2 Re(sum_n c_n x_n)``."""
    return interleaved(2 * c.conj())
