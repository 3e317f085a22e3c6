"""Two collectives, each the other's gradient, so that any derivative of either exists; torch.compile traces them."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

# torch 2.13 renames both, and warns of the older names.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = x.new_empty(group.size() * len(x))
        _run(_gather, gathered, x, group)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(gradient, ctx.group), None


class _Scatter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        summed = x.new_empty(len(x) // group.size())
        _run(_scatter, summed, x, group)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(gradient, ctx.group), None


def _run(collective: Any, out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    if torch.compiler.is_compiling():
        collective(out, x.contiguous(), group=group)
        return
    try:
        collective(out, x.contiguous(), group=group)
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {group.rank()} of {group.size()} waited in vain for another rank: {error}"
        ) from error


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Vectors ``(n,)`` of all ranks, ``(ranks, n)``. The gradient is the sum of the ranks' gradients."""
    return cast("Tensor", _Gather.apply(x, group)).unflatten(0, (group.size(), -1))
