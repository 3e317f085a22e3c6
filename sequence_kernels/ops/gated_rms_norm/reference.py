"""The gated norm and its adjoint in plain torch, (rows, groups, channels). The README here has the formulas."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement


@implement("gated_rms_norm", "torch")
def gated_rms_norm(x: Tensor, weight: Tensor, z: Tensor | None, gate_first: bool, eps: float) -> Tensor:
    gate = None if z is None else F.silu(z.to(weight.dtype))
    v = x.to(weight.dtype)
    v = v * gate if gate is not None and gate_first else v
    y = F.rms_norm(v, v.shape[-1:], eps=eps) * weight
    y = y * gate if gate is not None and not gate_first else y
    return y.to(x.dtype).clone(memory_format=torch.contiguous_format)


@implement("gated_rms_norm_backward", "torch")
def gated_rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, z: Tensor | None, gate_first: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide, h = x.to(weight.dtype), g.to(weight.dtype)
    silu = slope = None
    if z is not None:
        sigma = torch.sigmoid(z.to(weight.dtype))
        silu = z.to(weight.dtype) * sigma
        slope = sigma * (1 + z.to(weight.dtype) * (1 - sigma))
    first = silu is not None and gate_first
    v = wide * silu if silu is not None and first else wide
    arriving = h * silu if silu is not None and not first else h

    r = (v.square().mean(-1, keepdim=True) + eps).rsqrt()
    t = weight * arriving
    dv = r * t - v * r**3 * (t * v).mean(-1, keepdim=True)
    dz = torch.zeros_like(x)
    dx = dv
    if z is not None and silu is not None and slope is not None:
        dx = dv * silu if first else dv
        dz = ((dv * wide if first else h * v * r * weight) * slope).to(z.dtype)
    return _laid_out(dx.to(x.dtype)), (arriving * v * r).sum(0), _laid_out(dz)


def _laid_out(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)
