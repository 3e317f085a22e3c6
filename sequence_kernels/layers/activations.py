"""Activations by name: what makes one, the gain of weights before it, and what a stepper knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..stepping.stages import Elementwise, Gate, Stage, is_tensor
from .norms import TransposedLN

#: Numbers from which on a gradient by our op is faster than by torch's functions, on a CPU, and of what types.
_WORTH_A_CALL = 1 << 17
_FASTER = {"gelu": (torch.float32,), "glu": (torch.float32, torch.bfloat16)}


def is_worth_our_op(kind: str | None, numbers: int, dtype: torch.dtype, *tensors: Tensor) -> bool:
    """Whether ``ops.activation`` computes the gradient of so many numbers, made of the tensors, faster than torch.

    Not of tensors of several types: those are torch's to refuse, however many there are.
    """
    return (
        numbers >= _WORTH_A_CALL
        and dtype in _FASTER.get(kind or "", ())
        and torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and all(is_tensor(t) and t.device.type == "cpu" and after_autocast(t.dtype) == dtype for t in tensors)
        and not torch.compiler.is_exporting()
    )


def after_autocast(dtype: torch.dtype) -> torch.dtype:
    """What a linear map gives on a CPU, and ``ops.activation``, of numbers of this type."""
    cast = torch.is_autocast_enabled("cpu") and dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if cast else dtype


class GELU(nn.GELU):
    """``torch.nn.GELU``, of which training on a CPU takes less time."""

    def kind(self) -> str | None:
        """What ``ops.activation`` calls it; None if it has no name there."""
        return "gelu" if self.approximate == "none" else None

    def forward(self, x: Tensor) -> Tensor:
        if is_worth_our_op(self.kind(), x.numel(), x.dtype, x):
            if x.is_contiguous():
                return ops.activation(x, "gelu")
            if x.mT.is_contiguous():
                return ops.activation(x.mT, "gelu").mT
        return F.gelu(x, approximate=self.approximate)


class GLU(nn.GLU):
    """``torch.nn.GLU``, of which training on a CPU takes less time."""

    def kind(self) -> str | None:
        """What ``ops.activation`` calls it along the last dimension; None along another."""
        return "glu" if self.dim == -1 else None

    def forward(self, x: Tensor) -> Tensor:
        if is_worth_our_op(self.kind(), x.numel(), x.dtype, x) and x.is_contiguous():
            return ops.activation(x, "glu")
        return F.glu(x, self.dim)


class SquaredReLU(nn.Module):
    """``max(x, 0)^2`` (So et al. 2021, "Primer")."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class ModReLU(nn.Module):
    """``sign(x) * max(|x| + b, 0)`` with a bias ``b`` for each of ``size`` channels along the axis ``dim``.

    The real form of the unitary recurrent networks' activation (Arjovsky et al. 2016). b starts uniform in
    (-0.01, 0.01).
    """

    def __init__(self, size: int, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
        self.b = nn.Parameter(torch.empty(size).uniform_(-0.01, 0.01))

    def forward(self, x: Tensor) -> Tensor:
        b = self.b.reshape(-1, *(1 for _ in range(-1 - self.dim)))
        return x.sign() * F.relu(x.abs() + b)


class Activation(NamedTuple):
    """A row of the table.

    ``make(dim, size)``: the module, over ``size`` channels (None: not known) along ``dim``. ``gain``: of what comes
    before it, as in ``torch.nn.init.calculate_gain``. ``elementwise``: whether it maps each number by itself. ``code``:
    what it is called in C++ (Activation in csrc/step_program/step_program.h), None where C++ has no such function.
    """

    make: Callable[[int, int | None], nn.Module]
    gain: str = "linear"
    elementwise: bool = False
    code: int | None = None


def _each(module: type[nn.Module], gain: str = "linear", code: int | None = None) -> Activation:
    return Activation(lambda dim, size: module(), gain, True, code)


def _modrelu(dim: int, size: int | None) -> nn.Module:
    if size is None:
        raise ValueError("activation='modrelu' has a bias for each channel: its size must be given, got None")
    return ModReLU(size, dim)


_IDENTITY = _each(nn.Identity)
_SILU = _each(nn.SiLU, "relu", code=3)

#: All there are: a new one is a row here and, to be part of a stepper's one call, a function in csrc/step_program.
ACTIVATIONS: dict[str, Activation] = {
    "id": _IDENTITY,
    "identity": _IDENTITY,
    "linear": _IDENTITY,
    "tanh": _each(nn.Tanh, "tanh", code=2),
    "relu": _each(nn.ReLU, "relu", code=1),
    "gelu": _each(GELU, "relu", code=0),
    "swish": _SILU,
    "silu": _SILU,
    "elu": _each(nn.ELU),
    "sigmoid": _each(nn.Sigmoid, "sigmoid", code=4),
    "softplus": _each(nn.Softplus),
    "sqrelu": _each(SquaredReLU, "relu"),
    "modrelu": Activation(_modrelu),
    "glu": Activation(lambda dim, size: GLU(dim=dim)),
    "ln": Activation(lambda dim, size: TransposedLN(1, dim=dim)),
}


def activation_module(name: str | None, dim: int = -1, size: int | None = None) -> nn.Module:
    """The activation of that name over channels along ``dim``, -1 or -2, ``size`` of them ("modrelu" needs it).

    "glu" halves the channels, "ln" normalises over them. None is the identity. Raises ValueError for a name that is
    not known.
    """
    if name is None:
        return nn.Identity()
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(sorted(ACTIVATIONS))}; got {name!r}")
    return ACTIVATIONS[name].make(dim, size)


def inner_activation(name: str | None, dim: int, size: int) -> nn.Module:
    """``activation_module`` inside a layer, where the width must stay: ValueError for "glu"."""
    if name == "glu":
        raise ValueError("activation cannot be 'glu', which would halve the width")
    return activation_module(name, dim, size)


#: Of each type of elementwise activation, an example and its code.
_ELEMENTWISE = {
    type(example): (example, row.code)
    for row in ACTIVATIONS.values()
    if row.elementwise
    for example in [row.make(-1, None)]
}
_ELEMENTWISE[nn.GELU] = _ELEMENTWISE[GELU]  # in modules that other libraries made


def activation_stages(module: nn.Module, transposed: bool) -> list[Stage] | None:
    """What a plain activation does to channels in the last dimension; None for another module.

    ``transposed``: the module takes ``(..., channels, length)``, else ``(..., channels)``.
    """
    if type(module) in (GLU, nn.GLU):
        return [Gate()] if module.dim == (-2 if transposed else -1) else None
    if type(module) not in _ELEMENTWISE:
        return None
    example, code = _ELEMENTWISE[type(module)]
    same = module.extra_repr() == example.extra_repr()  # as made by default
    return [Elementwise(module, code if same else None)]
