"""GELU and GLU with a gradient that reads and writes each number once."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations, implement_natively
from ..registration import register_with_adjoint

KINDS = ("gelu", "glu")

find_implementations(__name__, "activation", "activation_backward")
for _op in ("activation", "activation_backward"):
    implement_natively(_op, "cpu")


def activation(x: Tensor, kind: str, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """``torch.nn.functional.gelu(x + bias)`` or ``glu(x + bias, -1)``: the same formulas, to the same digits.

    GELU is Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), by the error function; GLU is Dauphin et al.,
    "Language Modeling with Gated Convolutional Networks" (2017).

    Args:
        x: ``(..., C)``, float16, bfloat16, float32 or float64.
        kind: "gelu", or "glu", which takes an even number C of channels and halves it.
        bias: ``(C,)``, what the linear map before it has left out; float64 if ``x`` is, else float32 or half precision.
        backend: None chooses the fastest that can serve the call.

    Returns:
        contiguous, of the dtype of ``x``, ``(..., C)`` or ``(..., C / 2)``; computed in float32, or float64, and
        rounded once.

    Differentiable in both tensors, any number of times.
    """
    checks.tensors(x=x, **({} if bias is None else {"bias": bias}))
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    checks.has_last_dim("x", x, "C")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    gate = kind == "glu"
    if gate and x.shape[-1] % 2:
        raise ValueError(f"x must have an even number of channels for kind='glu', got {x.shape[-1]}")
    if bias is not None:
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        checks.dtype("bias", bias, (real,) if real == torch.float64 else (*checks.HALF, real))
        checks.shape("bias", bias, (("C", x.shape[-1]),))
        bias = bias.to(real).unsqueeze(0)
    rows = x.reshape(x.shape[:-1].numel(), 1, x.shape[-1])
    y = _activation(rows, bias, gate, choose("activation", backend, x))
    return y.view(*x.shape[:-1], y.shape[-1])


_activation, _ = register_with_adjoint(
    "activation",
    "x: BHW, bias?: HW, gate: bool",  # B rows, of W channels, and C of what is left of them; H = 1 outside vmap
    "y: BHC",
    fake=lambda x, bias, gate, backend: x.new_empty(*x.shape[:2], x.shape[2] // 2 if gate else x.shape[2]),
    missing="x",
    follows_autocast=(0,),
)
