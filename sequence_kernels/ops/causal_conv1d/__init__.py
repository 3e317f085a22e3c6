"""The short causal convolution of each channel by taps of its own, with the last inputs in and out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint

_OPS = ("causal_conv1d", "causal_conv1d_channels_last")
find_implementations(__name__, *_OPS, *(f"{op}_backward" for op in _OPS))


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y_t = activation(bias + sum_k weight[k] x_{t - W + 1 + k})`` in each channel, carrying the last W - 1 inputs.

    Args:
        x: input ``(B, D, L)``, float16, bfloat16, float32 or float64; any L >= 0. Channels may be next to each other,
            as in ``x.transpose(1, 2)`` of a contiguous ``(B, L, D)``: it is read where it lies, and y lies like it.
        weight: ``(D, W)``; ``weight[:, -1]`` is the tap of the element itself. float64 if ``x`` is, else float32 or
            the dtype of ``x``.
        bias: ``(D,)``, in a dtype that ``weight`` may have.
        activation: None, or "silu": ``x sigmoid(x)``.
        initial_state: ``(B, D, W - 1)``, the inputs before the first one, oldest first, in the dtype of ``x``; zeros
            if None.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` ``(B, D, L)`` and the final state ``(B, D, W - 1)``, the last W - 1 inputs, both in the dtype of ``x``.

    Sums are accumulated in float32, or in float64 if ``x`` is. Differentiable in every tensor, also through the final
    state; second derivatives recompute the first in plain torch. One step is a call of length 1.
    """
    given = {"x": x, "weight": weight}
    given |= {"bias": bias} if bias is not None else {}
    given |= {"initial_state": initial_state} if initial_state is not None else {}
    checks.tensors(**given)
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    checks.shape("x", x, (("B", None), ("D", None), ("L", None)))
    batch, channels, _ = x.shape
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    parameters = dict.fromkeys((real, x.dtype))
    checks.dtype("weight", weight, tuple(parameters))
    checks.shape("weight", weight, (("D", channels), ("W", None)))
    if weight.shape[1] == 0:
        raise ValueError(f"weight must have shape (D, W) with W at least 1, got {tuple(weight.shape)}")
    if bias is not None:
        checks.dtype("bias", bias, tuple(parameters))
        checks.shape("bias", bias, (("D", channels),))
        bias = bias.to(real)
    if initial_state is not None:
        checks.dtype("initial_state", initial_state, (x.dtype,))
        before = (("B", batch), ("D", channels), ("W-1", weight.shape[1] - 1))
        checks.shape("initial_state", initial_state, before)
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be None or "silu", got {activation!r}')
    last = x.stride(1) == 1 and (x.stride(2) != 1 or x.shape[2] == 1)
    rest = (weight.to(real), bias, initial_state, activation == "silu", choose(_OPS[last], backend, x))
    if last:
        y, final_state = _channels_last(x.mT, *rest)
        return y.mT, final_state
    return _causal_conv1d(x, *rest)


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], weight.shape[0], weight.shape[1] - 1))


_REST = "weight: HW, bias?: H, initial_state?: BHS, silu: bool"
_causal_conv1d, _ = register_with_adjoint(
    "causal_conv1d",
    f"x: BHL, {_REST}",
    "y: BHL, final_state: BHS",
    fake=_fake,
    missing="weight",
    follows_autocast=(0, 3),
)
_channels_last, _ = register_with_adjoint(
    "causal_conv1d_channels_last",
    f"x: BLH, {_REST}",
    "y: BLH, final_state: BHS",
    fake=_fake,
    missing="weight",
    follows_autocast=(0, 3),
)
