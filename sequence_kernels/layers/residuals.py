"""Ways to join a layer's input ``x`` and output ``y``.

Called as ``residual(x, y, transposed)``: channels are the last axis, or the one before if ``transposed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments.values import checked
from ..stepping import stages
from ..stepping.stages import Stage, holds


class Residual(nn.Module):
    """``alpha * x + beta * y``. Raises ValueError when ``x`` is kept and the widths differ."""

    @checked
    def __init__(
        self, i_layer: int | None, d_input: int, d_model: int, alpha: float = 1.0, beta: float = 1.0
    ) -> None:
        super().__init__()
        if alpha != 0.0 and d_input != d_model:
            raise ValueError(
                f"residual needs a layer that keeps the width; got d_model={d_input}, d_output={d_model}"
            )
        self.i_layer = i_layer
        self.d_input = d_input
        self.d_output = d_model
        self.alpha = alpha
        self.beta = beta

    def _depth_power(self, exponent: float) -> float:
        """``i_layer ** -exponent``, where layers count from 1."""
        if exponent == 0.0:
            return 1.0
        if self.i_layer is None or self.i_layer < 1:
            raise ValueError(
                f"this residual depends on depth: i_layer must be at least 1; got {self.i_layer}"
            )
        return self.i_layer**-exponent

    def forward(self, x: Tensor, y: Tensor, transposed: bool = False) -> Tensor:
        y = y if self.beta == 1.0 else self.beta * y
        if self.alpha == 0.0:
            return y
        return (x if self.alpha == 1.0 else self.alpha * x) + y

    def around(self, inside: list[Stage]) -> list[Stage]:
        """The stages ``inside`` joined with their input: see ``joined``."""
        if self.alpha == 0.0 and self.beta == 1.0:
            return inside
        return [stages.Save(), *inside, stages.Residual(self.alpha, self.beta)]


class Feedforward(Residual):
    """``y``: no residual at all."""

    @checked
    def __init__(self, i_layer: int | None, d_input: int, d_model: int) -> None:
        super().__init__(i_layer, d_input, d_model, alpha=0.0)


class DecayResidual(Residual):
    """``alpha * x + beta * y`` with ``beta = i_layer^-power``.

    ``alpha^2 + beta^2 = 1``, or with ``l2=False`` ``alpha + beta = 1``.
    """

    @checked
    def __init__(
        self, i_layer: int | None, d_input: int, d_model: int, power: float = 0.5, l2: bool = True
    ) -> None:
        super().__init__(i_layer, d_input, d_model)
        self.beta = self._depth_power(power)
        self.alpha = (1.0 - self.beta**2) ** 0.5 if l2 else 1.0 - self.beta


class Affine(Residual):
    """``alpha * x + c * y`` with a learned ``c``, one for all channels (``scalar``) or one for each.

    It starts at ``beta * i_layer^-gamma``.
    """

    @checked
    def __init__(
        self,
        i_layer: int | None,
        d_input: int,
        d_model: int,
        alpha: float = 1.0,
        beta: float = 1.0,
        scalar: bool = True,
        gamma: float = 0.0,
    ) -> None:
        super().__init__(i_layer, d_input, d_model, alpha, beta)
        start = beta * self._depth_power(gamma)
        self.affine = nn.Parameter(torch.full((1 if scalar else d_model,), start))

    def forward(self, x: Tensor, y: Tensor, transposed: bool = False) -> Tensor:
        scale = self.affine.unsqueeze(-1) if transposed else self.affine
        return self.alpha * x + scale * y


class Highway(Residual):
    """``c * (1 - r) * x + r * w`` with ``w = Wy y`` and ``r = sigmoid(Wx x + w)`` (Srivastava et al. 2015).

    ``c`` is 1, or 1.732 with ``scaling_correction``; ``Wy`` is a matrix, or with ``elemwise`` a vector.
    """

    @checked
    def __init__(
        self,
        i_layer: int | None,
        d_input: int,
        d_model: int,
        scaling_correction: bool = False,
        elemwise: bool = False,
    ) -> None:
        super().__init__(i_layer, d_input, d_model)
        self.scale = 1.732 if scaling_correction else 1.0
        self.Wx = nn.Linear(d_input, d_input)
        self.Wy = nn.Parameter(torch.randn(d_input)) if elemwise else nn.Linear(d_input, d_input)

    def forward(self, x: Tensor, y: Tensor, transposed: bool = False) -> Tensor:
        if transposed:
            return self.forward(x.mT, y.mT).mT
        w = self.Wy(y) if isinstance(self.Wy, nn.Linear) else self.Wy * y
        r = torch.sigmoid(self.Wx(x) + w)
        return self.scale * (1.0 - r) * x + r * w


def joined(residual: Residual, inside: list[Stage]) -> list[Stage]:
    """The stages ``inside``, and the residual of their input and output."""
    if holds(residual, "around"):
        return residual.around(inside)
    return [stages.Save(), *inside, stages.Join(residual)]


RESIDUALS: dict[str, type[Residual]] = {
    "R": Residual,
    "residual": Residual,
    "F": Feedforward,
    "N": Feedforward,
    "none": Feedforward,
    "ff": Feedforward,
    "feedforward": Feedforward,
    "H": Highway,
    "highway": Highway,
    "D": DecayResidual,
    "decay": DecayResidual,
    "A": Affine,
    "affine": Affine,
}


def make_residual(
    config: str | Mapping[str, Any], i_layer: int | None, d_input: int, d_model: int
) -> Residual:
    """Build a residual from its name or from ``{"_name_": name, **arguments}``.

    Raises ValueError for a name that ``RESIDUALS`` does not have, or for widths that it cannot join.
    """
    arguments = {"_name_": config} if isinstance(config, str) else dict(config)
    name = arguments.pop("_name_", None)
    if name not in RESIDUALS:
        raise ValueError(f"residual must be one of {', '.join(RESIDUALS)}; got {name!r}")
    return RESIDUALS[name](i_layer, d_input, d_model, **arguments)
