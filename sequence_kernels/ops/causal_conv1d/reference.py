"""The short causal convolution and its adjoint in plain torch.

With z_t = bias + sum_k w_k x_{t-W+1+k} and y_t = z_t, or z_t s_t where s_t = sigmoid(z_t): the gradient of z_t is h_t =
g_t, or g_t s_t (1 + z_t (1 - s_t)); dx_j = sum_k w_k h_{j+W-1-k}, dw_k = sum_t h_t x_{t-W+1+k}, dbias = sum_t h_t.
The gradient of the final state is added to those of the inputs, given ones or initial ones, that it consists of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement


def _known(x: Tensor, weight: Tensor, initial_state: Tensor | None) -> Tensor:
    """All inputs, those before the first one too."""
    kept = weight.shape[1] - 1
    return F.pad(x, (kept, 0)) if initial_state is None else torch.cat((initial_state.to(x.dtype), x), -1)


def _convolved(known: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    length = known.shape[-1] - weight.shape[1] + 1
    taps = weight.unsqueeze(-1).unbind(1)
    z = sum((tap * known[..., k : k + length] for k, tap in enumerate(taps)), start=torch.zeros_like(taps[0]))
    return z if bias is None else z + bias.unsqueeze(-1)


@implement("causal_conv1d", "torch")
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    known = _known(x, weight, initial_state)
    z = _convolved(known.to(weight.dtype), weight, bias)
    return (F.silu(z) if silu else z).to(x.dtype), known[..., x.shape[-1] :].clone()


@implement("causal_conv1d_backward", "torch")
def causal_conv1d_backward(
    g: Tensor,
    g_final: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, width = x.shape[-1], weight.shape[1]
    known = _known(x, weight, initial_state).to(weight.dtype)
    h = g.to(weight.dtype)
    if silu:
        z = _convolved(known, weight, bias)
        s = torch.sigmoid(z)
        h = h * s * (1 + z * (1 - s))
    d_known = F.pad(g_final.to(weight.dtype), (length, 0))
    for k, tap in enumerate(weight.unsqueeze(-1).unbind(1)):
        d_known = d_known + F.pad(tap * h, (k, width - 1 - k))
    d_weight = torch.stack([(h * known[..., k : k + length]).sum((0, 2)) for k in range(width)], -1)
    d_initial, dx = d_known[..., : width - 1], d_known[..., width - 1 :]
    d_initial = d_initial if initial_state is None else d_initial.to(initial_state.dtype)
    return dx.to(x.dtype), d_weight, h.sum((0, 2)), d_initial


@implement("causal_conv1d_channels_last", "torch")
def causal_conv1d_channels_last(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y, final_state = causal_conv1d(x.mT, *rest)
    return y.mT, final_state


@implement("causal_conv1d_channels_last_backward", "torch")
def causal_conv1d_channels_last_backward(
    g: Tensor, g_final: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, d_weight, d_bias, d_initial = causal_conv1d_backward(g.mT, g_final, x.mT, *rest)
    return dx.mT, d_weight, d_bias, d_initial
