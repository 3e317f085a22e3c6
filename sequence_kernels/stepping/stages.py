"""What one time step of a module does, as a list of stages that a ``Stepper`` runs one after another.

A stage works on channels in the last dimension, and on every position by itself unless it carries a state, so that it
serves one time step ``(rows, channels)`` and a block ``(rows, length, channels)`` alike. Each says how it runs, whether
it can be part of a program of the C++ interpreter, and what state it has. A stage belongs to one stepper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from .. import ops
from ..arguments import keywords
from ..trees import tensors_of, with_tensors

if TYPE_CHECKING:
    from .program import Program


class Passage(NamedTuple):
    """What stages share while a step or a block goes through them."""

    kept: list[Tensor]  # a stack
    state_indices: Tensor | None  # the state of each row, -1 for none; None: in the order of the rows


class Stage:
    """A part of a time step."""

    #: Whether it depends on nothing but its own tensors: not on a module, which must then be in eval mode.
    fixed: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"the stage {type(self).__name__}"

    def run(self, x: Tensor, passage: Passage) -> Tensor | None:
        """Map a step or a block; None where a module gives no output yet."""
        raise NotImplementedError

    def translate(self, program: Program) -> bool:
        """Add instructions that do the same; False if there are none."""
        return False


class Carrier(Stage):
    """A stage with a state, which it keeps in ``state`` once it is allocated."""

    #: Whether the state keeps its shape.
    shaped: ClassVar[bool]
    #: Tensors in the state.
    count: int = 1

    state: Any

    def allocate(self, batch_shape: tuple[int, ...], device: torch.device, room: Tensor | None) -> None:
        """Make the state before the first element; in ``room`` (rows, any), if a program holds the stage."""
        raise NotImplementedError

    def leaves(self) -> list[Tensor]:
        """The tensors of the state, in the order and shapes of the module."""
        raise NotImplementedError

    def assign(self, values: Iterator[Tensor]) -> None:
        """Take as many values as there are leaves for the state."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Save(Stage):
    """Keep the channels, on a stack, for the ``Residual`` or ``Join`` to come."""

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        passage.kept.append(x)
        return x

    def translate(self, program: Program) -> bool:
        program.save()
        return True


@dataclass(frozen=True, eq=False)
class Residual(Stage):
    """``alpha`` times the kept channels plus ``beta`` times the present ones."""

    alpha: float
    beta: float

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return self.alpha * passage.kept.pop() + self.beta * x

    def translate(self, program: Program) -> bool:
        program.residual(self.alpha, self.beta)
        return True


@dataclass(frozen=True, eq=False)
class Join(Stage):
    """``function(kept, present)``."""

    function: Callable[[Tensor, Tensor], Tensor]
    fixed = False

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return self.function(passage.kept.pop(), x)


@dataclass(frozen=True, eq=False)
class Pointwise(Stage):
    """``function(x)``."""

    function: Callable[[Tensor], Tensor]
    fixed = False

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return self.function(x)


@dataclass(frozen=True, eq=False)
class Called(Stage):
    """A module, called as for sequences of one element: ``(rows, 1, channels)``, or transposed."""

    module: nn.Module
    transposed: bool = False
    fixed = False

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        length = -1 if self.transposed else -2
        y = self.module(x.reshape(-1, x.shape[-1]).unsqueeze(length)).squeeze(length)
        return y.reshape(*x.shape[:-1], y.shape[-1])


@dataclass(frozen=True, eq=False)
class Linear(Stage):
    """``weight x + bias`` with ``weight`` (outputs, inputs) and x the channels from ``begin`` on.

    ``behind``: the outputs come behind the channels there are, else instead of them.
    """

    weight: Tensor
    bias: Tensor | None
    begin: int = 0
    behind: bool = False

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        inputs = self.weight.shape[1]
        y = F.linear(x.narrow(-1, self.begin, inputs), self.weight, self.bias)
        return torch.cat((x, y), -1) if self.behind else y

    def translate(self, program: Program) -> bool:
        program.linear(self.weight, self.bias, self.begin, self.behind)
        return True


@dataclass(frozen=True, eq=False)
class Kept(Stage):
    """The ``size`` channels from ``begin`` on, and no other."""

    begin: int
    size: int

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return x.narrow(-1, self.begin, self.size)

    def translate(self, program: Program) -> bool:
        program.keep(self.begin, self.size)
        return True


@dataclass(frozen=True, eq=False)
class Gate(Stage):
    """The first half of the channels times the sigmoid of the second."""

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return F.glu(x, -1)

    def translate(self, program: Program) -> bool:
        program.glu()
        return True


@dataclass(frozen=True, eq=False)
class Elementwise(Stage):
    """A function of each number; ``code``: the Activation of csrc/step_program that it is, None if it is none."""

    function: Callable[[Tensor], Tensor]
    code: int | None = None

    def __str__(self) -> str:
        return f"the function {getattr(self.function, '__name__', type(self.function).__name__)}"

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        return self.function(x)

    def translate(self, program: Program) -> bool:
        if self.code is None:
            return False
        program.activation(self.code)
        return True


@dataclass(frozen=True, eq=False)
class Norm(Stage):
    """``(x - mean + shift) / sqrt(max(variance, least) + eps) * gamma + beta`` over the channels."""

    gamma: Tensor
    beta: Tensor
    eps: float = 0.0
    least: float = 0.0
    shift: float = 0.0

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        if self.least == self.shift == 0.0:
            return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, self.eps)
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True).clamp(min=self.least) + self.eps).rsqrt()
        return (centred + self.shift) * scale * self.gamma + self.beta

    def translate(self, program: Program) -> bool:
        program.norm(self.gamma, self.beta, self.eps, self.least, self.shift)
        return True


@dataclass(frozen=True, eq=False)
class RootMeanSquare(Stage):
    """``ops.gated_rms_norm`` of the channels from ``begin`` on; ``gate``: where those of z begin."""

    weight: Tensor
    eps: float
    groups: int = 1
    begin: int = 0
    gate: int | None = None
    gate_first: bool = True

    def run(self, x: Tensor, passage: Passage) -> Tensor:
        size = len(self.weight)
        z = None if self.gate is None else x.narrow(-1, self.gate, size)
        y = ops.gated_rms_norm(
            x.narrow(-1, self.begin, size),
            self.weight,
            z,
            groups=self.groups,
            gate_first=self.gate_first,
            eps=self.eps,
        )
        return replaced(x, self.begin, y)

    def translate(self, program: Program) -> bool:
        program.rms_norm(self.weight, self.eps, self.groups, self.begin, self.gate, self.gate_first)
        return True


def replaced(x: Tensor, begin: int, y: Tensor) -> Tensor:
    """x with y as its channels from ``begin`` on."""
    end = begin + y.shape[-1]
    if begin == 0 and end == x.shape[-1]:
        return y
    return torch.cat((x[..., :begin], y, x[..., end:]), -1)


class Steppable(Protocol):
    """What a stepper and its stages ask of an ``nn.Module``: see ``SequenceModule``, which is one."""

    @property
    def causal(self) -> bool: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_output(self) -> int: ...
    @property
    def step(self) -> Callable[..., tuple[Any, Any]]: ...
    @property
    def stages(self) -> Callable[..., list[Stage]]: ...
    def takes(self, method: str) -> frozenset[str] | None: ...
    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any: ...


class Whole(Carrier):
    """The step of a module that does not say what it is made of."""

    fixed = False
    shaped = False

    def __init__(self, module: Steppable, arguments: dict[str, Any]) -> None:
        self.module = cast("Any", module)
        self.arguments = arguments

    def __str__(self) -> str:
        return f"the step of a {type(self.module).__name__}"

    def run(self, x: Tensor, passage: Passage) -> Tensor | None:
        """One step or a block by the module's own steps, of which some may give None."""
        outputs = []
        with torch.inference_mode(False), torch.no_grad():  # the state serves later calls too
            for one in [x] if x.dim() == 2 else x.unbind(1):
                y, self.state = self.module.step(
                    one.reshape(*self._batch_shape, one.shape[-1]), self.state, **self.arguments
                )
                if y is not None:
                    outputs.append(y.reshape(len(x), y.shape[-1]))
        if x.dim() == 2:
            return outputs[0] if outputs else None
        return torch.stack(outputs, 1) if outputs else x.new_empty(len(x), 0, self.module.d_output)

    def allocate(self, batch_shape: tuple[int, ...], device: torch.device, room: Tensor | None) -> None:
        self._batch_shape = batch_shape
        self.state = self.module.default_state(*batch_shape, device=device)

    def leaves(self) -> list[Tensor]:
        return list(tensors_of(self.state))

    def assign(self, values: Iterator[Tensor]) -> None:
        self.state = with_tensors(self.state, (next(values).to(old, copy=True) for old in self.leaves()))


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module is its class's ``forward`` and nothing else: no hooks, no ``forward`` of its own."""
    return not (
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )


#: Types of tensors that are the numbers they hold; another may be quantised, or in parts on several devices.
_TENSORS = (Tensor, nn.Parameter)


def is_tensor(weight: Tensor) -> bool:
    """Whether a tensor is the numbers it holds."""
    return type(weight) in _TENSORS


def holds(module: nn.Module, description: str) -> bool:
    """Whether what the method named ``description`` says of the module is what the module does.

    It is not where the module is not ``is_plain``, has a step of its own, or is of a class that overrides a function of
    the class that wrote the method.
    """
    if not is_plain(module) or "step" in vars(module):
        return False
    classes = type(module).__mro__
    author = next(i for i, cls in enumerate(classes) if description in vars(cls))
    below = [vars(cls) for cls in classes[:author] if not vars(cls).get("only_turns", False)]
    return not any(
        isinstance(getattr(classes[author], name, None), (FunctionType, property))
        for names in below
        for name in names
        if not name.startswith("__")
    )


def says_stages(module: nn.Module) -> bool:
    """Whether it is a causal module that says what its step is made of."""
    sequential = hasattr(module, "default_state") and getattr(module, "causal", False)
    return sequential and hasattr(module, "stages") and holds(module, "stages")


def stages_of(module: Steppable, **arguments: Any) -> list[Stage]:
    """What ``module.step`` does in eval mode with what it takes of the arguments: its stages, or its step as it is."""
    arguments = keywords.handed(module, "step", arguments)
    if holds(cast("nn.Module", module), "stages"):
        return module.stages(**arguments)
    return [Whole(module, arguments)]
