"""What one time step of a module does, as a list of stages that a ``Stepper`` runs one after another.

A stage works on channels in the last dimension and on every position by itself, so that it serves one time step
``(..., channels)`` and a block ``(..., length, channels)`` alike. Only ``Recurrence`` and ``Whole`` carry a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from ..module import SequenceModule
    from ..ssm import System


@dataclass(frozen=True)
class Save:
    """Keep the channels, on a stack, for the ``Residual`` or ``Join`` to come."""


@dataclass(frozen=True)
class Residual:
    """``alpha`` times the kept channels plus ``beta`` times the present ones."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class Join:
    """``function(kept, present)``."""

    function: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pointwise:
    """``function(x)``; ``module``: that it stands for, if it computes the same in training and eval mode."""

    function: Callable[[Tensor], Tensor]
    module: nn.Module | None = None


@dataclass(frozen=True)
class Norm:
    """``(x - mean + shift) / sqrt(max(variance, least) + eps) * gamma + beta`` over the channels."""

    gamma: Tensor
    beta: Tensor
    eps: float = 0.0
    least: float = 0.0
    shift: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        if self.least == self.shift == 0.0:
            return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, self.eps)
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True).clamp(min=self.least) + self.eps).rsqrt()
        return (centred + self.shift) * scale * self.gamma + self.beta


@dataclass(frozen=True)
class Recurrence:
    """A state-space model with its skip ``d``: ``(..., H)`` to ``(..., C H)``."""

    system: System
    d: Tensor


@dataclass(frozen=True)
class Whole:
    """The step of a module that does not say what it is made of."""

    module: SequenceModule
    arguments: dict[str, Any]


Stage = Save | Residual | Join | Pointwise | Norm | Recurrence | Whole

_SKIPPED = (nn.Identity, nn.modules.dropout._DropoutNd)
_ANY_AXIS = (nn.GELU, nn.ReLU, nn.Tanh, nn.SiLU, nn.Sigmoid)


def pointwise(module: nn.Module, transposed: bool = False) -> list[Stage]:
    """Stages of an ordinary module in eval mode that maps every position by itself.

    ``transposed``: the module takes ``(..., channels, length)``, else ``(..., channels)``.
    """
    if isinstance(module, _SKIPPED):
        return []
    if isinstance(module, nn.Sequential):
        return [stage for part in module for stage in pointwise(part, transposed)]
    if isinstance(module, nn.Linear):
        return [Pointwise(lambda x: F.linear(x, module.weight, module.bias), module)]
    if isinstance(module, nn.GLU):
        return [Pointwise(lambda x: F.glu(x, -1), module)]
    if isinstance(module, _ANY_AXIS):
        return [Pointwise(module, module)]
    return [Pointwise((lambda x: module(x.unsqueeze(-1)).squeeze(-1)) if transposed else module)]
