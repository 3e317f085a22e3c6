"""A root mean square norm over groups of channels, with a gate before or after it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..registration import register_with_adjoint

find_implementations(__name__, "gated_rms_norm", "gated_rms_norm_backward")


def gated_rms_norm(
    x: Tensor,
    weight: Tensor,
    z: Tensor | None = None,
    *,
    groups: int = 1,
    gate_first: bool = True,
    eps: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """``v / sqrt(mean(v^2) + eps) weight`` with ``v = x silu(z)``, or with ``v = x`` and ``silu(z)`` a last factor.

    The norm of Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024, section 7).

    Args:
        x: ``(..., C)``, at any strides of rows whose channels lie side by side; float16, bfloat16, float32 or float64.
        weight: ``(C,)``. Like ``z`` of any of these dtypes; float64 if and only if ``x`` is.
        z: gate, of the shape of ``x``; None: no gate.
        groups: of C / groups neighbouring channels, each of which has a mean of its own.
        gate_first: whether the gate comes before the norm.
        eps: added to the mean.
        backend: None chooses the fastest that can serve the call.

    Returns:
        a tensor of the shape and dtype of ``x``; computed in float32, or float64, and rounded once.

    Differentiable in every tensor, any number of times.
    """
    given = {"x": x, "weight": weight} | ({} if z is None else {"z": z})
    checks.tensors(**given)
    checks.dtype("x", x, (*checks.HALF, *checks.REAL))
    checks.has_last_dim("x", x, "C")
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, value in given.items():
        checks.dtype(name, value, (real,) if real == torch.float64 else (*checks.HALF, real))
    checks.integer("groups", groups, 1)
    channels = x.shape[-1]
    checks.shape("weight", weight, (("C", channels),))
    if channels % groups:
        raise ValueError(f"groups must divide the channels C={channels}, got {groups}")
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z must have the shape of x, {tuple(x.shape)}, got {tuple(z.shape)}")
    shape = math.prod(x.shape[:-1]), groups, channels // groups
    gate = None if z is None else z.reshape(shape)
    weight = weight.to(real).unflatten(0, shape[1:])
    backend = choose("gated_rms_norm", backend, x)
    return _gated_rms_norm(x.reshape(shape), weight, gate, gate_first, eps, backend).reshape(x.shape)


_gated_rms_norm, _ = register_with_adjoint(
    "gated_rms_norm",
    "x: BHC, weight: HC, z?: BHC, gate_first: bool, eps: float",  # H groups
    "y: BHC",
    fake=lambda x, *rest: x.new_empty(x.shape),
    missing="x",
    follows_autocast=(0, 2),
)
