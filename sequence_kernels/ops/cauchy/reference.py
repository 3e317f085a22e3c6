"""Cauchy products in plain torch: the sum as written, over blocks of nodes so that memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import implement
from ..layouts import conjugated

#: Node-pole pairs (over all batch dimensions) that are held at a time.
_BLOCK = 1 << 20


def _reciprocals(z: Tensor, w: Tensor, order: int) -> Tensor:
    """``(..., L, N)``: 1 / (z_l - w_n)^order; exactly 0 where a node is infinite."""
    infinite = (torch.isinf(z.real) | torch.isinf(z.imag)) if z.is_complex() else torch.isinf(z)
    difference = torch.where(infinite, 1, z).unsqueeze(-1) - torch.where(
        infinite.unsqueeze(-1), 0, w.unsqueeze(-2)
    )
    return torch.where(infinite.unsqueeze(-1), 0, difference.reciprocal().pow(order))


def _blocks(z: Tensor, w: Tensor) -> list[tuple[int, int]]:
    length = z.shape[-1]
    across = max(1, torch.broadcast_shapes(z.shape[:-1], w.shape[:-1]).numel() * w.shape[-1])
    step = max(1, _BLOCK // across)
    return [(start, min(start + step, length)) for start in range(0, length, step)]


@implement("cauchy", "torch")
def cauchy(v: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    out = [v.new_zeros((*torch.broadcast_shapes(v.shape[:-1], z.shape[:-1], w.shape[:-1]), 0))]
    for start, stop in _blocks(z, w):
        nodes = z[..., start:stop]
        block = (_reciprocals(nodes, w, order) @ v.unsqueeze(-1)).squeeze(-1)
        if conjugate:
            block = block + (_reciprocals(nodes, conjugated(w), order) @ conjugated(v).unsqueeze(-1)).squeeze(
                -1
            )
        out.append(block)
    return torch.cat(out, -1)


def both_of_pairs(g: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and nodes with their conjugates, for backends without a transpose of their own for pairs."""
    return torch.cat((g, conjugated(g)), -1), torch.cat((z, conjugated(z)), -1)


@implement("cauchy_transpose", "torch")
def cauchy_transpose(g: Tensor, z: Tensor, w: Tensor, conjugate: bool, order: int) -> Tensor:
    if conjugate:
        g, z = both_of_pairs(g, z)
    out = g.new_zeros((*torch.broadcast_shapes(g.shape[:-1], z.shape[:-1], w.shape[:-1]), w.shape[-1]))
    for start, stop in _blocks(z, w):
        part = g[..., start:stop].unsqueeze(-2) @ _reciprocals(z[..., start:stop], w, order)
        out = out + part.squeeze(-2)
    return out
