"""States that are not known yet: those before a part of sequences whose earlier parts are held elsewhere.

A module is given them like others, in the places of the tensors of its state, and hands them to where its recurrence
has its inputs. There each is exchanged for the state itself, by who knows the other parts (``distributed``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from .trees import mapped_as

#: What passes between the ends of a part: elements, where all are alike, or how much each of them weighs, in all.
Elapsed = int | Tensor

#: From how much passes to what that makes of a state.
Transition = Callable[[Any], Callable[[Tensor], Tensor]]


class Exchange(Protocol):
    """From the state before all parts, and what a part does to states, to the states before it and behind the last."""

    def __call__(
        self, start: Tensor, end: Tensor, transition: Transition, elapsed: Elapsed
    ) -> tuple[Tensor, Tensor]: ...


class Awaited:
    """The state before a part: ``start`` is the one before all of them."""

    def __init__(self, start: Tensor, exchange: Exchange) -> None:
        self.start = start
        self.exchange = exchange

    def reshape(self, *shape: int) -> Awaited:
        return Awaited(self.start.reshape(*shape), self.exchange)

    def resolve(self, end: Tensor, transition: Transition, elapsed: Elapsed) -> tuple[Tensor, Tensor]:
        """The state before this part, and the one behind the last.

        Args:
            end: the state behind this part, from zeros before it.
            transition: ``transition(elapsed)(state)`` is what a state before a part of so much adds to the one behind
                it: a linear map.
            elapsed: of this part; an int, or a tensor of one shape for all parts.
        """
        return self.exchange(self.start, end, transition, elapsed)


def begun(state: Any) -> Any:
    """A state with those that begin it in the places of awaited ones."""
    return mapped_as(Awaited, lambda part: part.start, state)
