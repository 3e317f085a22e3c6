"""Exponential moving sums in plain torch, one element after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement


@implement("ema", "torch")
def ema(u: Tensor, a: Tensor) -> Tensor:
    y, found = torch.zeros_like(u[..., 0]) if u.shape[-1] else u.sum(-1), []
    for u_t in u.unbind(-1):
        y = a * y + u_t
        found.append(y)
    return torch.stack(found, -1) if found else u.clone()


@implement("ema_backward", "torch")
def ema_backward(g: Tensor, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    du = ema(g.flip(-1), a).flip(-1)
    return du, (du[..., 1:] * ema(u, a)[..., :-1]).sum((0, 2))
