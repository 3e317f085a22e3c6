"""GELU and GLU and their adjoints by torch's own functions, (rows, heads, channels); formulas in the README here."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import implement


@implement("activation", "torch")
def activation(x: Tensor, bias: Tensor | None, gate: bool) -> Tensor:
    v = _with_bias(x, bias)
    return _laid_out((F.glu(v, -1) if gate else F.gelu(v)).to(x.dtype))


@implement("activation_backward", "torch")
def activation_backward(g: Tensor, x: Tensor, bias: Tensor | None, gate: bool) -> tuple[Tensor, Tensor]:
    aten = torch.ops.aten
    v = _with_bias(x, bias)
    wide = g.to(v.dtype)
    dv = aten.glu_backward(wide, v, -1) if gate else aten.gelu_backward(wide, v)
    dbias = x.new_zeros(x.shape[1:]) if bias is None else dv.sum(0)
    return _laid_out(dv.to(x.dtype)), dbias


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x.to(bias.dtype) + bias


def _laid_out(t: Tensor) -> Tensor:
    return t.contiguous()
