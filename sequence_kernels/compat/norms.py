"""The norms of ``mamba_ssm.ops.triton``: ``layernorm_gated``, which a mixer ends with, and ``layer_norm``, which adds a
residual first.

Both compute in float32 (float64 of float64) and round once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..layers.selective import wide


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """The gated norm of Mamba-2, ``layernorm_gated.rmsnorm_fn``."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """The same, ``layernorm_gated.rms_norm_ref``; ``upcast`` changes nothing."""
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """The gated norm of either kind, with a bias."""
    groups = 1 if group_size is None else x.shape[-1] // group_size
    if is_rms_norm and bias is None:
        return ops.gated_rms_norm(x, weight, z, groups=groups, gate_first=not norm_before_gate, eps=eps)
    gate = 1 if z is None else F.silu(wide(z))
    y = (wide(x) if norm_before_gate else wide(x) * gate).unflatten(-1, (groups, -1))
    y = _normed(y, eps, is_rms_norm).flatten(-2) * wide(weight) + (0 if bias is None else wide(bias))
    return (y * gate if norm_before_gate else y).to(x.dtype)


def _normed(x: Tensor, eps: float, is_rms_norm: bool) -> Tensor:
    return (F.rms_norm if is_rms_norm else F.layer_norm)(x, x.shape[-1:], eps=eps)


class _Gated(nn.Module):
    _is_rms_norm: bool
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        bias = None if self._is_rms_norm else nn.Parameter(torch.zeros_like(self.weight))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        before = self.norm_before_gate
        return layernorm_fn(
            x, self.weight, self.bias, z, self.eps, self.group_size, before, self._is_rms_norm
        )


class GatedRMSNorm(_Gated):
    """``layernorm_gated.RMSNorm``."""

    _is_rms_norm = True


class GatedLayerNorm(_Gated):
    """``layernorm_gated.LayerNorm``."""

    _is_rms_norm = False


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """The norm of ``dropout(rowscale x) + dropout(x1) + residual``; with ``prenorm`` that sum too.

    ``weight1`` asks for a second norm of the same sum. The sum has the residual's dtype, or ``x``'s; without a residual
    float32 if ``residual_in_fp32``.

    Raises:
        NotImplementedError: ``return_dropout_mask``; no masks are made.
    """
    if return_dropout_mask:
        raise NotImplementedError("return_dropout_mask must be False: no mask is made")
    total = wide(x) if rowscale is None else wide(x) * wide(rowscale).unsqueeze(-1)
    total = F.dropout(total, dropout_p)
    if x1 is not None:
        total = total + F.dropout(wide(x1), dropout_p)
    if residual is not None:
        total = total + wide(residual)
        kind = residual.dtype
    else:
        kind = wide(x).dtype if residual_in_fp32 else x.dtype

    def normed(weight: Tensor, bias: Tensor | None) -> Tensor:
        y = _normed(total, eps, is_rms_norm) * wide(weight)
        return (y if bias is None else y + wide(bias)).to(x.dtype)

    found = [normed(weight, bias)]
    if weight1 is not None:
        found.append(normed(weight1, bias1))
    if prenorm:
        found.append(total.to(kind))
    return found[0] if len(found) == 1 else tuple(found)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """``layer_norm_fn`` with a norm that subtracts no mean."""
    sums = (residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm, residual_in_fp32)
    return layer_norm_fn(x, weight, bias, *sums, True, return_dropout_mask)


class RMSNorm(nn.Module):
    """``layer_norm.RMSNorm``, of a sum with a residual."""

    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.dropout_p = eps, dropout_p
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Any:
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            dropout_p=self.dropout_p if self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
