"""The small parts that layers share: activations, linear maps along the channels, and dropout kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import TransposedLN


class SquaredReLU(nn.Module):
    """``max(x, 0)^2`` (So et al. 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "id": lambda dim: nn.Identity(),
    "identity": lambda dim: nn.Identity(),
    "linear": lambda dim: nn.Identity(),
    "tanh": lambda dim: nn.Tanh(),
    "relu": lambda dim: nn.ReLU(),
    "gelu": lambda dim: nn.GELU(),
    "swish": lambda dim: nn.SiLU(),
    "silu": lambda dim: nn.SiLU(),
    "sigmoid": lambda dim: nn.Sigmoid(),
    "softplus": lambda dim: nn.Softplus(),
    "sqrelu": lambda dim: SquaredReLU(),
    "glu": lambda dim: nn.GLU(dim=dim),
    "ln": lambda dim: TransposedLN(1),
}


def activation_module(name: str | None, dim: int = -1) -> nn.Module:
    """The activation of that name; ``dim`` is the channel axis, which "glu" halves. None is the identity.

    Raises ValueError for a name that is not known.
    """
    if name is None:
        return nn.Identity()
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(sorted(_ACTIVATIONS))}; got {name!r}")
    return _ACTIVATIONS[name](dim)


class TransposedLinear(nn.Linear):
    """``nn.Linear`` along the second-to-last axis: ``(..., d_input, length) -> (..., d_output, length)``."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.weight @ x
        return y if self.bias is None else y + self.bias.to(y.dtype).unsqueeze(-1)


def linear_activation(
    d_input: int, d_output: int, activation: str | None = None, *, transposed: bool = False, bias: bool = True
) -> nn.Module:
    """A linear map along the channels, then the activation: ``Sequential(linear, activation)``.

    Without an activation it is the bare linear map, so that its weight is named ``weight``, not ``0.weight``,
    as in ESPnet. With "glu" the linear map gives ``2 * d_output`` channels. Channels are the last axis, or
    with ``transposed=True`` the second to last.
    """
    linear = TransposedLinear if transposed else nn.Linear
    if activation is None:
        return linear(d_input, d_output, bias=bias)
    width = 2 * d_output if activation == "glu" else d_output
    channels = -2 if transposed else -1
    return nn.Sequential(linear(d_input, width, bias=bias), activation_module(activation, channels))


def _drop(x: Tensor, mask_shape: list[int], p: float) -> Tensor:
    return x * F.dropout(torch.ones(mask_shape, dtype=x.dtype, device=x.device), p)


class DropoutNd(nn.Dropout):
    """Dropout whose mask is the same at every position of a sequence.

    ``(batch, length, channels)``, or with ``transposed=True`` ``(batch, channels, length)``.
    """

    def __init__(self, p: float = 0.5, transposed: bool = True) -> None:
        super().__init__(p)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask_shape = list(x.shape)
        if x.dim() > 2:
            mask_shape[-1 if self.transposed else -2] = 1
        return _drop(x, mask_shape, self.p)


class StochasticDepth(nn.Dropout):
    """Drop whole rows of a batch (Huang et al. 2016, "Deep Networks with Stochastic Depth")."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return _drop(x, [*x.shape[:1], *(1 for _ in x.shape[1:])], self.p)


def dropout_module(p: float, *, tied: bool = False, transposed: bool = False) -> nn.Module:
    """Dropout with probability ``p``, ``tied`` along the sequence or not; the identity for ``p == 0``."""
    if p == 0.0:
        return nn.Identity()
    return DropoutNd(p, transposed=transposed) if tied else nn.Dropout(p)
