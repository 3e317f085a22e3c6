"""The short causal convolution and its adjoint by the C++ kernels (csrc/causal_conv1d)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import implement


def rows_of(x: Tensor) -> Tensor:
    """As the kernels read sequences: at any strides but of the last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def as_read(weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, silu: bool) -> tuple[Any, ...]:
    before = None if initial_state is None else initial_state.to(weight.dtype).contiguous()
    return weight.contiguous(), None if bias is None else bias.contiguous(), before, silu


def forward(channels_last: bool) -> Any:
    def run(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        native = torch.ops.sequence_kernels_native.causal_conv1d.default
        y, final_state = native(rows_of(x), *as_read(*rest), channels_last)
        return y, final_state.to(x.dtype)

    return run


def backward(channels_last: bool) -> Any:
    def run(
        g: Tensor, g_final: Tensor, x: Tensor, weight: Tensor, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        native = torch.ops.sequence_kernels_native.causal_conv1d_backward.default
        after = g_final.to(weight.dtype).contiguous()
        dx, dw, db, d_initial = native(rows_of(g), after, rows_of(x), *as_read(weight, *rest), channels_last)
        before = rest[1]
        return dx, dw, db, d_initial if before is None else d_initial.to(before.dtype)

    return run


for _op, _last in (("causal_conv1d", False), ("causal_conv1d_channels_last", True)):
    implement(_op, "cpu")(forward(_last))
    implement(f"{_op}_backward", "cpu")(backward(_last))
