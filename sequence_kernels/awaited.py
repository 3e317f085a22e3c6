"""States that are not known yet: those before a part of sequences whose earlier parts are held elsewhere.

A module is given them like others, in the places of the tensors of its state, and hands them to where its recurrence
has its inputs. There each is exchanged for the state itself, by who knows the other parts: other processes
(``distributed``), or other rows of the same call (``Pieces``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .trees import mapped_as

#: What passes between the ends of a part: elements, where all are alike, or how much each of them weighs, in all.
Elapsed = int | Tensor

#: From how much passes to what that makes of a state.
Transition = Callable[[Any], Callable[[Tensor], Tensor]]


class Exchange(Protocol):
    """From the state before all parts, and what a part does to states, to the states before it and behind the last."""

    def __call__(
        self, start: Tensor, end: Tensor, transition: Transition, elapsed: Elapsed, backwards: bool = False
    ) -> tuple[Tensor, Tensor]: ...

    def joined(self, start: Tensor, part: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Of states that grow by an element each: what is before this part, and all there is."""
        ...


class Awaited:
    """The state before a part: ``start`` is the one before all of them.

    Of what looks ahead it is the state behind a part, and ``start`` the one behind all of them.
    """

    def __init__(self, start: Tensor, exchange: Exchange) -> None:
        self.start = start
        self.exchange = exchange

    def reshape(self, *shape: int) -> Awaited:
        return Awaited(self.start.reshape(*shape), self.exchange)

    def unbind(self, axis: int) -> list[Awaited]:
        return [Awaited(start, self.exchange) for start in self.start.unbind(axis)]

    def resolve(
        self, end: Tensor, transition: Transition, elapsed: Elapsed, *, backwards: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The state before this part, and the one behind the last; ``backwards``, from the last part to the first.

        Args:
            end: the state behind this part, from zeros before it.
            transition: ``transition(elapsed)(state)`` is what a state before a part of so much adds to the one behind
                it: a linear map.
            elapsed: of this part; an int, or a tensor of one shape for all parts.
        """
        return self.exchange(self.start, end, transition, elapsed, backwards)


class Pieces:
    """``Exchange`` of a call whose rows are pieces of sequences, ``count`` one behind the other of each.

    The state that it gives as behind the last is, for each row, the one behind that.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(
        self, start: Tensor, end: Tensor, transition: Transition, elapsed: Elapsed, backwards: bool = False
    ) -> tuple[Tensor, Tensor]:
        if backwards:
            raise ValueError("pieces of one call pass states on forwards only")
        apart = (-1, self.count)
        if isinstance(elapsed, Tensor):
            moves = [transition(time) for time in elapsed.unflatten(0, apart).unbind(1)]
        else:
            moves = [transition(elapsed)] * self.count
        states = [start.unflatten(0, apart)[:, 0].to(end.dtype)]
        for move, one in zip(moves, end.unflatten(0, apart).unbind(1), strict=True):
            states.append(move(states[-1]) + one)
        before, behind = (torch.stack(each, 1).flatten(0, 1) for each in (states[:-1], states[1:]))
        return before, behind

    def joined(self, start: Tensor, part: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        raise ValueError("pieces of one call cannot share a state that grows: each has one of another size")


#: Modules of torch whose outputs depend on other positions.
_WHOLE = (
    _BatchNorm,
    nn.GroupNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def unsplit(model: nn.Module) -> tuple[str, str] | None:
    """The name of a part of a model that cannot be given sequences in parts, and why; None if there is none."""
    for name, module in model.named_modules():
        reason = _unsplit_reason(module)
        if reason is not None:
            return name, reason
    return None


def _unsplit_reason(module: nn.Module) -> str | None:
    own: Callable[[], str | None] | None = getattr(module, "unsplit_reason", None)
    if own is not None:
        return own()
    if isinstance(module, _WHOLE):
        return f"a {type(module).__name__} looks at other positions"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and set(module.kernel_size) != {1}:
        return f"a {type(module).__name__} looks at other positions; CausalConv can be split"
    return None


def begun(state: Any) -> Any:
    """A state with those that begin it in the places of awaited ones."""
    return mapped_as(Awaited, lambda part: part.start, state)
