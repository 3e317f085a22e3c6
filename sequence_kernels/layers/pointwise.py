"""What an ordinary module does to each position, as stages of a stepper."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..stepping.stages import Called, Linear, Stage, is_plain, is_tensor
from .activations import activation_stages
from .components import DropoutNd, LinearActivation, StochasticDepth, TransposedLinear
from .norms import layer_norm, rms_norm

#: In eval mode they return what they are given.
_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    DropoutNd,
    StochasticDepth,
)


def pointwise(module: nn.Module, transposed: bool = False) -> list[Stage]:
    """Stages of a module in eval mode that maps every position by itself.

    A module of a type that is not known here, or that is not plain (a subclass, as adapters make; hooks, a
    parametrisation, pruning; a ``forward`` of its own), is called.

    ``transposed``: the module takes ``(..., channels, length)``, else ``(..., length, channels)``.
    """
    known = _stages(module, transposed) if is_plain(module) else None
    return [Called(module, transposed)] if known is None else known


def _stages(module: Any, transposed: bool) -> list[Stage] | None:
    """Of a plain module; None if it is of another type."""
    kind = type(module)
    if kind in _NOTHING:
        return []
    if kind in (nn.Sequential, LinearActivation):
        return [stage for part in module for stage in pointwise(part, transposed)]
    if kind is (TransposedLinear if transposed else nn.Linear):
        return [Linear(module.weight, module.bias)] if is_tensor(module.weight) else None
    if kind is nn.LayerNorm and not transposed:
        return layer_norm(module)
    if kind is nn.RMSNorm and not transposed:
        return rms_norm(module)
    return activation_stages(module, transposed)
