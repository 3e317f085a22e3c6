"""The small parts that layers share: linear maps along the channels, and dropout kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..arguments.values import checked
from ..optim import CarriesOptions
from ..stepping.stages import is_plain
from .activations import ACTIVATIONS, GELU, GLU, activation_module, after_autocast, is_worth_our_op


class SparedLinear(CarriesOptions, nn.Linear):
    """``nn.Linear`` whose bias asks optimizers for no weight decay (see ``sequence_kernels.parameter_groups``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.bias is not None:
            self.set_options("bias", {"weight_decay": 0.0})


class TransposedLinear(SparedLinear):
    """``nn.Linear`` along the second-to-last axis: ``(..., d_input, length) -> (..., d_output, length)``.

    Its bias asks optimizers for no weight decay, as in ESPnet.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 1:  # a step, where what counts is how many operations there are
            return F.linear(x.squeeze(-1), self.weight, self.bias).unsqueeze(-1)
        y, bias = self.weight @ x, self.bias
        return y if bias is None else y + bias.to(y.dtype).unsqueeze(-1)


class WeightNormLinear(CarriesOptions):
    """A linear map whose weight is ``weight_g * weight_v / |weight_v|``, row by row (Salimans and Kingma 2016).

    Channels are the last axis, or with ``transposed=True`` the second to last. It starts as the given map does.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.transposed = isinstance(linear, TransposedLinear)
        self.bias = linear.bias
        if self.bias is not None and isinstance(linear, SparedLinear):
            self.set_options("bias", {"weight_decay": 0.0})
        self.weight_g = nn.Parameter(linear.weight.detach().norm(dim=1, keepdim=True))
        self.weight_v = nn.Parameter(linear.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_g * F.normalize(self.weight_v, dim=1)
        if self.transposed:
            return weight @ x + (0 if self.bias is None else self.bias.unsqueeze(-1))
        return F.linear(x, weight, self.bias)


class LinearActivation(nn.Sequential):
    """A linear map along the last axis, then an activation.

    Where that is ``GELU`` or ``GLU``, training on a CPU adds the bias in the activation and sums its gradient there.
    """

    def forward(self, x: Tensor) -> Tensor:
        linear: Any
        activation: Any
        linear, activation = self if len(self) == 2 else (None, None)
        kind = activation.kind() if type(activation) in (GELU, GLU) and is_plain(activation) else None
        if kind is None or type(linear) not in (nn.Linear, SparedLinear) or not is_plain(linear):
            return super().forward(x)
        weight, bias = linear.weight, linear.bias
        numbers = x.numel() // linear.in_features * linear.out_features
        dtype = after_autocast(x.dtype)
        if bias is None or not is_worth_our_op(kind, numbers, dtype, x, weight, bias):
            return super().forward(x)
        return ops.activation(F.linear(x, weight), kind, bias)


_INITIALIZERS: dict[str, Callable[[Tensor, Any], Any]] = {
    "uniform": lambda weight, gain: nn.init.kaiming_uniform_(weight, nonlinearity=gain),
    "normal": lambda weight, gain: nn.init.kaiming_normal_(weight, nonlinearity=gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight),
    "zero": lambda weight, gain: nn.init.zeros_(weight),
    "one": lambda weight, gain: nn.init.ones_(weight),
}


def initialize(weight: Tensor, initializer: str, activation: str | None = None) -> None:
    """Draw a weight anew, with the gain of the activation that follows: "uniform", "normal", "xavier", "zero", "one".

    Raises ValueError for another name.
    """
    if initializer not in _INITIALIZERS:
        raise ValueError(
            f"initializer must be None or one of {', '.join(_INITIALIZERS)}; got {initializer!r}"
        )
    with torch.no_grad():
        _INITIALIZERS[initializer](
            weight, ACTIVATIONS[activation].gain if activation in ACTIVATIONS else "linear"
        )


def linear_activation(
    d_input: int,
    d_output: int,
    activation: str | None = None,
    *,
    transposed: bool = False,
    bias: bool = True,
    zero_bias_init: bool = False,
    initializer: str | None = None,
    weight_norm: bool = False,
    spare_bias: bool = False,
) -> nn.Module:
    """A linear map along the channels, then the activation: ``LinearActivation(linear, activation)``.

    Without an activation it is the bare linear map, so that its weight is named ``weight``, not ``0.weight``,
    as in ESPnet. With "glu" the linear map gives ``2 * d_output`` channels. Channels are the last axis, or
    with ``transposed=True`` the second to last. ``initializer``: see ``initialize``; None is torch's own.
    The bias asks for no weight decay if ``transposed``, as in ESPnet, or with ``spare_bias``.
    """
    width = 2 * d_output if activation == "glu" else d_output
    kind = TransposedLinear if transposed else SparedLinear if spare_bias else nn.Linear
    linear = kind(d_input, width, bias=bias)
    if initializer is not None:
        initialize(linear.weight, initializer, activation)
    if bias and zero_bias_init:
        nn.init.zeros_(linear.bias)
    first = WeightNormLinear(linear) if weight_norm else linear
    if activation is None:
        return first
    return LinearActivation(first, activation_module(activation, -2 if transposed else -1, d_output))


def output_map(
    d_input: int, d_output: int, postact: str | None, wanted: bool, transposed: bool = False
) -> nn.Module:
    """The linear map and the activation that end a layer, or nothing. ValueError for an activation of no map."""
    if wanted:
        return linear_activation(d_input, d_output, postact, transposed=transposed)
    if postact not in (None, "glu"):  # "glu" is what stands there where nothing is said
        raise ValueError(
            f"postact={postact!r} follows the linear map, and output_linear=False is without one"
        )
    return nn.Identity()


def _drop(x: Tensor, mask_shape: list[int], p: float) -> Tensor:
    return x * F.dropout(torch.ones(mask_shape, dtype=x.dtype, device=x.device), p)


class DropoutNd(nn.Dropout):
    """Dropout whose mask is the same at every position of a sequence; with ``tie=False`` ordinary dropout.

    ``(batch, length, channels)``, or with ``transposed=True`` ``(batch, channels, length)``.
    """

    @checked
    def __init__(self, p: float = 0.5, tie: bool = True, transposed: bool = True) -> None:
        super().__init__(p)
        self.tie = tie
        self.transposed = transposed

    def unsplit_reason(self) -> str | None:
        """As that of a ``SequenceModule``."""
        return "tie_dropout wants one mask for all positions" if self.tie and self.p > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask_shape = list(x.shape)
        if self.tie and x.dim() > 2:
            mask_shape[-1 if self.transposed else -2] = 1
        return _drop(x, mask_shape, self.p)


class StochasticDepth(nn.Dropout):
    """Drop whole rows of a batch, or with ``mode="batch"`` all of it (Huang et al. 2016, "Deep Networks with
    Stochastic Depth").
    """

    @checked
    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__(p)
        if mode not in ("row", "batch"):
            raise ValueError(f"mode must be 'row' or 'batch', got {mode!r}")
        self.mode = mode

    def unsplit_reason(self) -> str | None:
        """As that of a ``SequenceModule``."""
        return "drop_path drops whole sequences" if self.p > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows = len(x) if self.mode == "row" else 1
        return _drop(x, [rows, *(1 for _ in x.shape[1:])], self.p)


def dropout_module(p: float, *, tied: bool = False, transposed: bool = False) -> nn.Module:
    """Dropout with probability ``p``, ``tied`` along the sequence or not; the identity for ``p == 0``."""
    if p == 0.0:
        return nn.Identity()
    return DropoutNd(p, transposed=transposed) if tied else nn.Dropout(p)
