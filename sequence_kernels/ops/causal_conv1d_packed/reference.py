"""The short causal convolution of packed sequences and its adjoint in plain torch: each sequence alone, one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..causal_conv1d import reference
from ..dispatch import implement
from ..packing import check_bounds, parts_of


@implement("causal_conv1d_packed", "torch")
def causal_conv1d_packed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    check_bounds(cu_seqlens, x.shape[1])
    results = []
    for q, (begin, end) in enumerate(parts_of(cu_seqlens)):
        state = None if initial_state is None else initial_state[q : q + 1]
        results.append(reference.causal_conv1d_channels_last(x[:, begin:end], weight, bias, state, silu))
    return torch.cat([y for y, _ in results], 1), torch.cat([final for _, final in results])


@implement("causal_conv1d_packed_backward", "torch")
def causal_conv1d_packed_backward(
    g: Tensor,
    g_final: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_bounds(cu_seqlens, x.shape[1])
    parts = []
    for q, (begin, end) in enumerate(parts_of(cu_seqlens)):
        state = None if initial_state is None else initial_state[q : q + 1]
        slopes = g[:, begin:end], g_final[q : q + 1]
        parts.append(
            reference.causal_conv1d_channels_last_backward(
                *slopes, x[:, begin:end], weight, bias, state, silu
            )
        )
    dx, d_weight, d_bias, d_initial = zip(*parts, strict=True)
    return torch.cat(dx, 1), torch.stack(d_weight).sum(0), torch.stack(d_bias).sum(0), torch.cat(d_initial)
