"""GELU and GLU with a gradient that reads and writes each number once."""

from __future__ import annotations

from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations, implement_natively
from ..registration import register_with_adjoint

KINDS = ("gelu", "glu")

find_implementations(__name__, "activation", "activation_backward")
for _op in ("activation", "activation_backward"):
    implement_natively(_op, "cpu")


def activation(x: Tensor, kind: str, *, backend: str | None = None) -> Tensor:
    """``torch.nn.functional.gelu(x)`` or ``glu(x, -1)``: the same formulas, to the same digits.

    GELU is Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016), by the error function; GLU is Dauphin et al.,
    "Language Modeling with Gated Convolutional Networks" (2017).

    Args:
        x: ``(..., C)``, float16, bfloat16, float32 or float64.
        kind: "gelu", or "glu", which takes an even number C of channels and halves it.
        backend: None chooses the fastest that can serve the call.

    Returns:
        contiguous, of the dtype of ``x``, ``(..., C)`` or ``(..., C / 2)``; computed in float32, or float64, and
        rounded once.

    Differentiable any number of times.
    """
    checks.tensors(x=x)
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    checks.has_last_dim("x", x, "C")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    gate = kind == "glu"
    if gate and x.shape[-1] % 2:
        raise ValueError(f"x must have an even number of channels for kind='glu', got {x.shape[-1]}")
    y = _activation(x.reshape(x.shape[:-1].numel(), x.shape[-1]), gate, choose("activation", backend, x))
    return y.view(*x.shape[:-1], y.shape[-1])


_activation, _ = register_with_adjoint(
    "activation",
    "x: BW, gate: bool",  # B rows, of W channels, and C of what is left of them
    "y: BC",
    fake=lambda x, gate, backend: x.new_empty(x.shape[0], x.shape[1] // 2 if gate else x.shape[1]),
    missing="x",
    follows_autocast=(0,),
)
