"""Stages of a module that does not say them: one ``step`` of it is recorded, and what it did put into stages.

A recording holds for what the step did once. What could differ at another time is refused by name, and the stages are
held against the step in float64, from random states, at two batch sizes (``derived``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..freezing import copied
from ..trees import tensors_of, with_tensors
from .lowering import MOST, Value, lowered
from .registers import Affine, Append, Combine, Multiply
from .stages import (
    Carrier,
    Elementwise,
    Gate,
    Kept,
    Linear,
    Norm,
    Passage,
    RootMeanSquare,
    Stage,
    holds,
    is_plain,
    says_stages,
    stages_of,
)
from .translation import translated

_ROWS = 3  # of the step that is recorded
_TOLERANCE = 1e-9  # of the proof, relative


class UnknownStepError(Exception):
    """What in a step cannot be put into stages."""


class Derived(NamedTuple):
    """Stages, and those with a state in the order that the module's state has."""

    stages: list[Stage]
    carriers: list[Carrier]


def derived(module: Any, arguments: dict[str, Any]) -> Derived:
    """Stages that do what ``module.step(..., **arguments)`` does; the module is in eval mode.

    Raises UnknownStepError with the reason where there are none.
    """
    exact = copied(cast("nn.Module", module), {}).to("cpu", torch.float64).eval()
    _prove(exact, _Recorder(exact, arguments).record(), arguments)
    return _Recorder(module, arguments).record()


def holds_layers(module: nn.Module) -> bool:
    """Whether it has parts that say their stages."""
    return any(says_stages(part) for part in module.modules() if part is not module)


@torch.no_grad()
def _prove(module: Any, found: Derived, arguments: dict[str, Any]) -> None:
    """Hold the stages, and the program that they are, against steps of the module, which is in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    program = translated(found.stages, module.d_model, torch.float64)
    if isinstance(program, str):
        raise UnknownStepError(program)
    for rows in (2, _ROWS + 2):
        start = module.default_state(rows)
        start = with_tensors(start, map(random, tensors_of(start)))
        x = torch.randn(2, rows, module.d_model, dtype=torch.float64, generator=generator)
        wanted, state = [], start
        for one in x:
            y, state = module.step(one, state, **arguments)
            wanted.append(y)
        room = torch.zeros(rows, program.state_size, dtype=torch.float64)
        for numbers in (None, room):
            values = tensors_of(start)
            for carrier in found.carriers:
                carrier.allocate((rows,), x.device, numbers)
                carrier.assign(values)
            given = [
                _by_stages(found.stages, one) if numbers is None else program.run(numbers, one) for one in x
            ]
            leaves = [leaf for carrier in found.carriers for leaf in carrier.leaves()]
            pairs = zip((*given, *leaves), (*wanted, *tensors_of(state)), strict=True)
            if not all(_equal(a, b) for a, b in pairs):
                raise UnknownStepError("what was recorded of a step is not what another step does")


def _by_stages(stages: Sequence[Stage], x: Any) -> Any:
    passage = Passage([], None)
    for stage in stages:
        x = stage.run(x, passage)
    return x


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = 1.0 if b.numel() == 0 else max(1.0, float(b.abs().max()))
    return bool(((a - b).abs() <= _TOLERANCE * scale).all())


class _Recorder(TorchFunctionMode):
    """Records one step of a module, whose own tensors are constants."""

    def __init__(self, module: Any, arguments: dict[str, Any]) -> None:
        super().__init__()
        self._module, self._arguments = module, arguments
        self._names = {id(part): name for name, part in module.named_modules()}
        self._known: dict[int, tuple[Tensor, Value]] = {}  # with the tensors, so that no other gets their ids
        self._values: list[Value] = []
        self._before: dict[int, tuple[Tensor, int]] = {}  # tensors of the state, and their places in it
        self._after: dict[int, tuple[Tensor, int]] = {}
        self._carriers: dict[int, Carrier] = {}  # by the places of their states
        self._paused = False

    @torch.no_grad()
    def record(self) -> Derived:
        first = next(self._module.parameters(), torch.empty(0))
        start = self._module.default_state(_ROWS, device=first.device)
        self._before = {id(t): (t, at) for at, t in enumerate(tensors_of(start))}
        x = torch.zeros(_ROWS, self._module.d_model, dtype=first.dtype, device=first.device)
        self._note(x, Value(x.shape[-1]))
        attributes = self._attributes()
        with self._leaves():
            try:
                with self:
                    y, state = self._module.step(x, start, **self._arguments)
            except UnknownStepError:
                raise
            except Exception as error:
                raise UnknownStepError(f"step raised {type(error).__name__}: {error}") from error
            if self._attributes() != attributes:
                raise UnknownStepError("step changes attributes or tensors of the module")
        result = self._known.get(id(y))
        if result is None:
            raise UnknownStepError("what step returns is not made of x")
        places = [self._after.get(id(t), (t, -1))[1] for t in tensors_of(state)]
        if places != list(range(len(self._before))):
            raise UnknownStepError("the state that step returns is not, part by part, that of its layers")
        stages = lowered(self._values, result[1])
        if stages is None:
            raise UnknownStepError(f"step keeps more than {MOST} values for later")
        return Derived(stages, [self._carriers[at] for at in sorted(self._carriers)])

    def _attributes(self) -> list[Any]:
        """What a step must not change, as far as it can be seen."""

        def seen(value: Any) -> Any:
            return (id(value), len(value)) if isinstance(value, (list, dict, set)) else id(value)

        parts = [
            {name: seen(value) for name, value in vars(part).items() if name != "step"}
            for part in self._module.modules()
        ]
        tensors = [*self._module.parameters(), *self._module.buffers()]
        return [parts, [t._version for t in tensors if not t.is_inference()]]

    @contextmanager
    def _leaves(self) -> Iterator[None]:
        """While it records, the parts that say their stages are taken whole."""
        leaves: list[nn.Module] = []

        def find(part: nn.Module) -> None:
            for child in part.children():
                if child in leaves:
                    continue
                if says_stages(child) or (hasattr(child, "stages") and holds(child, "stages")):
                    leaves.append(child)
                    child.step = self._leaf(child)  # type: ignore[assignment]
                elif is_plain(child):
                    find(child)
                else:
                    raise UnknownStepError(f"{self._name(child)} has hooks, or a forward of its own")

        try:
            find(self._module)
            yield
        finally:
            for leaf in leaves:
                vars(leaf).pop("step", None)

    def _leaf(self, part: Any) -> Callable[..., Any]:
        own = part.step
        stateless = not hasattr(part, "default_state")

        def step(x: Any, state: Any = None, **arguments: Any) -> Any:
            if self._paused:
                return own(x, **arguments) if stateless else own(x, state, **arguments)
            value = self._value(x)
            given = list(tensors_of(state))
            places = [self._before.get(id(t), (t, -1))[1] for t in given]
            if value is None or -1 in places or not self._carriers.keys().isdisjoint(places):
                raise UnknownStepError(
                    f"{self._name(part)} is stepped with what is not x, or not a part of the state, or twice"
                )
            self._paused = True
            try:
                vars(part).pop("step")
                stages = part.stages() if stateless else stages_of(part, **arguments)
                output = own(x, **arguments) if stateless else own(x, state, **arguments)
            finally:
                part.step = step
                self._paused = False
            carriers = [stage for stage in stages if isinstance(stage, Carrier)]
            if sum(carrier.count for carrier in carriers) != len(given):
                raise UnknownStepError(f"{self._name(part)} is stepped without its state")
            at = 0
            for carrier in carriers:
                first = places[at]
                at += carrier.count
                if places[at - carrier.count : at] != list(range(first, first + carrier.count)):
                    raise UnknownStepError(f"the state of {self._name(part)} is given in another order")
                self._carriers[first] = carrier
            y, after = (output, None) if stateless else output
            self._after |= {id(t): (t, at) for t, at in zip(tensors_of(after), places, strict=True)}
            self._note(y, Value(y.shape[-1], (value,), lambda: stages, kept=bool(carriers)))
            return output

        return step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [*tensors_of(list(args)), *tensors_of(list(kwargs.values()))]
        if self._paused or not any(id(t) in self._known or self._is_state(t) for t in given):
            return func(*args, **kwargs)
        if func in _QUESTIONS:
            return func(*args, **kwargs)
        rule = _RULES.get(func)
        if rule is None or any(self._is_state(t) for t in given):
            what = "" if rule is None else " of the state"
            raise UnknownStepError(f"{_name(func)}{what} is not known to it, {self._where()}")
        output = func(*args, **kwargs)
        try:
            made = rule(_Call(self, output), *args, **kwargs)
        except TypeError:
            made = None
        if made is None:
            raise UnknownStepError(f"{_name(func)} with such arguments is not known to it, {self._where()}")
        for tensor, value in zip(
            output if isinstance(output, (list, tuple)) else [output], made, strict=True
        ):
            if tensor.shape != (_ROWS, value.width):
                raise UnknownStepError(f"{_name(func)} does not give (batch, channels), {self._where()}")
            self._note(tensor, value)
        return output

    def _is_state(self, tensor: Tensor) -> bool:
        return id(tensor) in self._before or id(tensor) in self._after

    def _note(self, tensor: Tensor, value: Value) -> None:
        self._known[id(tensor)] = tensor, value
        if value not in self._values:
            self._values.append(value)

    def _value(self, tensor: Any) -> Value | None:
        found = self._known.get(id(tensor))
        return None if found is None else found[1]

    def _name(self, part: nn.Module) -> str:
        name = self._names.get(id(part), "")
        return f"{name} ({type(part).__name__})" if name else type(part).__name__

    def _where(self) -> str:
        """The innermost part of the module that is at work, and its line."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            part = frame.f_locals.get("self")
            if isinstance(part, nn.Module) and id(part) in self._names:
                return f"in {self._name(part)}, line {frame.f_lineno} of {frame.f_code.co_filename}"
            frame = frame.f_back
        return "in step"


class _Call:
    """A call that is recorded: what its arguments are, and what its outputs are made of.

    Each method gives the values of the outputs, or None where it knows no stages for the call.
    """

    def __init__(self, recorder: _Recorder, output: Any) -> None:
        self._value = recorder._value
        self._output = output

    def _of(self, x: Any, *stages: Stage, width: int | None = None) -> list[Value] | None:
        value = self._value(x)
        if value is None:
            return None
        return [Value(value.width if width is None else width, (value,), lambda: list(stages))]

    def _constant(self, value: Any, like: Tensor) -> Tensor | None:
        """A number, or one for each channel."""
        if isinstance(value, (bool, int, float)):
            return like.new_full((like.shape[-1],), float(value))
        if type(value) not in (Tensor, nn.Parameter) or self._value(value) is not None:
            return None
        ones = value.dim() == 0 or (
            value.shape[-1] in (1, like.shape[-1]) and value.numel() == value.shape[-1]
        )
        return value.detach().to(like.dtype).reshape(-1).expand(like.shape[-1]) if ones else None

    def same(self, x: Tensor, *_: Any, **__: Any) -> list[Value] | None:
        value = self._value(x)
        same = value is not None and self._output.shape == x.shape and self._output.dtype == x.dtype
        return [cast("Value", value)] if same else None

    def dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> list[Value] | None:
        return None if training else self.same(x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> list[Value] | None:
        plain = all(t is None or type(t) in (Tensor, nn.Parameter) for t in (weight, bias))
        return self._of(x, Linear(weight, bias), width=len(weight)) if plain else None

    def matmul(self, x: Tensor, other: Tensor) -> list[Value] | None:
        return self.linear(x, other.mT) if self._value(other) is None and other.dim() == 2 else None

    def layer_norm(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> list[Value] | None:
        if len(normalized_shape) != 1:
            return None
        gamma = self._constant(1.0 if weight is None else weight, x)
        beta = self._constant(0.0 if bias is None else bias, x)
        return None if gamma is None or beta is None else self._of(x, Norm(gamma, beta, eps))

    def rms_norm(
        self,
        x: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> list[Value] | None:
        gamma = self._constant(1.0 if weight is None else weight, x)
        if len(normalized_shape) != 1 or gamma is None:
            return None
        return self._of(x, RootMeanSquare(gamma, torch.finfo(x.dtype).eps if eps is None else eps))

    def gelu(self, x: Tensor, approximate: str = "none") -> list[Value] | None:
        return self._of(x, Elementwise(F.gelu, 0)) if approximate == "none" else None

    def relu(self, x: Tensor, inplace: bool = False) -> list[Value] | None:
        return None if inplace else self._of(x, Elementwise(torch.relu, 1))

    def tanh(self, x: Tensor) -> list[Value] | None:
        return self._of(x, Elementwise(torch.tanh, 2))

    def silu(self, x: Tensor, inplace: bool = False) -> list[Value] | None:
        return None if inplace else self._of(x, Elementwise(F.silu, 3))

    def sigmoid(self, x: Tensor) -> list[Value] | None:
        return self._of(x, Elementwise(torch.sigmoid, 4))

    def glu(self, x: Tensor, dim: int = -1) -> list[Value] | None:
        return self._of(x, Gate(), width=x.shape[-1] // 2) if dim in (-1, 1) else None

    def add(self, x: Any, other: Any, *, alpha: float = 1.0) -> list[Value] | None:
        return self._sum(x, other, 1.0, float(alpha))

    def sub(self, x: Any, other: Any, *, alpha: float = 1.0) -> list[Value] | None:
        return self._sum(x, other, 1.0, -float(alpha))

    def rsub(self, x: Any, other: Any, *, alpha: float = 1.0) -> list[Value] | None:
        return self._sum(x, other, -float(alpha), 1.0)

    def neg(self, x: Tensor) -> list[Value] | None:
        return self._scaled(x, -1.0, 0.0)

    def mul(self, x: Any, other: Any) -> list[Value] | None:
        a, b = self._value(x), self._value(other)
        if a is None or b is None:
            return self._scaled(x, other, 0.0) if a is not None else self._scaled(other, x, 0.0)
        if a.width != b.width:
            return None
        return [Value(a.width, (a, b), lambda depth: [Multiply(depth)], lambda depth: [Multiply(depth)])]

    def square(self, x: Tensor) -> list[Value] | None:
        return self.mul(x, x)

    def div(self, x: Any, other: Any) -> list[Value] | None:
        if self._value(x) is None or self._value(other) is not None:
            return None
        return self._scaled(x, 1 / other, 0.0)

    def cat(self, tensors: Sequence[Tensor], dim: int = 0) -> list[Value] | None:
        values = [value for t in tensors if (value := self._value(t)) is not None]
        if dim not in (-1, 1) or len(values) != len(tensors):
            return None

        def appended(*depths: int) -> list[Stage]:
            return [Append(depth, value.width) for depth, value in zip(depths, values[1:], strict=True)]

        return [Value(sum(value.width for value in values), tuple(values), appended)]

    def item(self, x: Tensor, index: Any) -> list[Value] | None:
        last = index[-1] if isinstance(index, tuple) and len(index) == 2 else None
        if not isinstance(last, slice) or (index[0] is not Ellipsis and index[0] != slice(None)):
            return None
        begin, end, step = last.indices(x.shape[-1])
        return self._of(x, Kept(begin, end - begin), width=end - begin) if step == 1 and begin < end else None

    def narrow(self, x: Tensor, dim: int, start: int, length: int) -> list[Value] | None:
        return self._of(x, Kept(start, length), width=length) if dim in (-1, 1) and start >= 0 else None

    def parted(self, x: Tensor, _: Any, dim: int = 0) -> list[Value] | None:
        value = self._value(x)
        if value is None or dim not in (-1, 1):
            return None
        found, begin = [], 0
        for part in self._output:
            kept = Kept(begin, part.shape[-1])
            found.append(Value(kept.size, (value,), lambda kept=kept: [kept]))
            begin += kept.size
        return found

    def _sum(self, x: Any, y: Any, alpha: float, beta: float) -> list[Value] | None:
        """``alpha x + beta y``."""
        a, b = self._value(x), self._value(y)
        if a is None or b is None:
            constant = self._constant(y if a is not None else x, self._output)
            if constant is None:
                return None
            kept, scale, other = (x, alpha, beta) if a is not None else (y, beta, alpha)
            return self._scaled(kept, scale, other * constant)
        if a.width != b.width:
            return None
        return [
            Value(
                a.width,
                (a, b),
                lambda depth: [Combine(depth, beta, alpha)],
                lambda depth: [Combine(depth, alpha, beta)],
            )
        ]

    def _scaled(self, x: Tensor, scale: Any, shift: Any) -> list[Value] | None:
        scales, shifts = self._constant(scale, x), self._constant(shift, x)
        return None if scales is None or shifts is None else self._of(x, Affine(scales, shifts))


def _name(function: Any) -> str:
    return f"{getattr(function, '__name__', function)}()"


def _named(owners: Sequence[Any], *names: str) -> list[Any]:
    return [getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)]


_EVERYWHERE = (torch, Tensor, F)
_RULES: dict[Any, Callable[..., list[Value] | None]] = {
    function: rule
    for rule, functions in (
        (
            _Call.same,
            _named((torch, Tensor), "contiguous", "clone", "detach", "to", "float", "double", "type_as"),
        ),
        (_Call.same, _named((torch, Tensor), "view", "reshape", "view_as")),
        (_Call.dropout, _named((F,), "dropout", "alpha_dropout", "feature_alpha_dropout")),
        (_Call.linear, [F.linear]),
        (_Call.matmul, _named((torch, Tensor), "matmul", "mm", "__matmul__")),
        (_Call.layer_norm, [F.layer_norm]),
        (_Call.rms_norm, [F.rms_norm]),
        (_Call.gelu, [F.gelu]),
        (_Call.relu, _named(_EVERYWHERE, "relu")),
        (_Call.tanh, _named(_EVERYWHERE, "tanh")),
        (_Call.silu, [F.silu]),
        (_Call.sigmoid, _named(_EVERYWHERE, "sigmoid")),
        (_Call.glu, [F.glu]),
        (_Call.add, _named((torch, Tensor), "add", "__add__", "__radd__")),
        (_Call.sub, _named((torch, Tensor), "sub", "subtract", "__sub__")),
        (_Call.rsub, _named((torch, Tensor), "rsub", "__rsub__")),
        (_Call.neg, _named((torch, Tensor), "neg", "negative", "__neg__")),
        (_Call.mul, _named((torch, Tensor), "mul", "multiply", "__mul__", "__rmul__")),
        (_Call.square, _named((torch, Tensor), "square")),
        (_Call.div, _named((torch, Tensor), "div", "divide", "true_divide", "__truediv__")),
        (_Call.cat, _named((torch,), "cat", "concat", "concatenate")),
        (_Call.item, [Tensor.__getitem__]),
        (_Call.narrow, _named((torch, Tensor), "narrow")),
        (_Call.parted, _named((torch, Tensor), "chunk", "split")),
    )
    for function in functions
}
#: What says nothing of the numbers in a tensor.
_QUESTIONS = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")
    ),
    *_named((Tensor,), "size", "dim", "numel", "__len__", "is_complex", "is_floating_point", "is_contiguous"),
}
