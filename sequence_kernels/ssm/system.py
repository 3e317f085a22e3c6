"""What a discrete state-space model is to a layer: a kernel, chunk matrices, and a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


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

    @property
    def dense(self) -> bool:
        """Whether the powers of A in its chunk matrices are."""

    @property
    def c(self) -> Tensor:
        """Readouts ``(C, H, N)``, whose dtype is that of the results."""

    def kernel(self, length: int) -> Tensor:
        """The first taps ``K[l] = 2 Re(C A^l B)`` of the kernel, ``(C, H, length)``."""

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``a``, ``p``, ``q`` and ``b`` of ``ops.ssm_chunk``, complex128."""

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        """What ``ops.ssm_step`` needs, with the skip d (in any dtype)."""

    def transition(self, length: int) -> Callable[[Tensor], Tensor]:
        """From states ``(..., H, N)`` to ``A^length`` of them."""

    def channels(self, start: int, stop: int) -> System:
        """The same system with some of its output channels."""
