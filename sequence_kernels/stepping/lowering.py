"""What a step computes, as a graph of values, put into a row of stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .registers import Close, Open, Put, Take
from .stages import Stage

#: Values that may be kept at a time; the interpreter has room for 16, and layers keep some of their own.
MOST = 8


@dataclass(frozen=True, eq=False)
class Value:
    """Channels that a step computes of other ones.

    ``stages(*depths)``: what makes it of the first of ``inputs``, with the others kept at those depths. ``turned``: the
    same where the second of two inputs is at hand and the first kept. ``kept``: made even if nothing needs it.
    """

    width: int
    inputs: tuple[Value, ...] = ()
    stages: Callable[..., list[Stage]] = field(default=list)
    turned: Callable[[int], list[Stage]] | None = None
    kept: bool = False

    def begins_with(self, present: Value) -> bool:
        """Whether it can be made with that one at hand, without taking another."""
        return present in self.inputs[:1] or (self.turned is not None and present is self.inputs[1])


def needed(values: list[Value], result: Value) -> list[Value]:
    """Those of the values, in order, that the result is made of or that are to be made anyway; the first always."""
    found = {id(result), id(values[0])}
    for value in reversed(values):
        if value.kept or id(value) in found:
            found |= {id(value), *map(id, value.inputs)}
    return [value for value in values if id(value) in found]


def lowered(values: list[Value], result: Value) -> list[Stage] | None:
    """Stages that make the result of the first value; None where more than ``MOST`` values have to be kept."""
    order = needed(values, result)
    uses: dict[int, list[int]] = {id(value): [] for value in order}
    for at, value in enumerate(order):
        for given in value.inputs:
            uses[id(given)].append(at)
    uses[id(result)].append(len(order))
    depths: dict[int, int] = {}
    stages: list[Stage] = []
    room = 0
    for at, value in enumerate(order):
        if at > 0:
            inputs, make = value.inputs, value.stages
            present = order[at - 1]
            if value.turned is not None and inputs[0] is not present and inputs[1] is present:
                inputs, make = inputs[::-1], value.turned
            if inputs[0] is not present:
                stages.append(Take(depths[id(inputs[0])], inputs[0].width))
            stages += make(*(depths[id(given)] for given in inputs[1:]))
        for key in [key for key in depths if uses[key][-1] <= at]:
            del depths[key]
        later = uses[id(value)]
        at_hand = later == [at + 1] and (at + 1 == len(order) or order[at + 1].begins_with(value))
        if later and not at_hand:
            depth = next(free for free in range(len(order)) if free not in depths.values())
            depths[id(value)] = depth
            room = max(room, depth + 1)
            stages.append(Put(depth))
    if order[-1] is not result:
        stages.append(Take(depths[id(result)], result.width))
    if room == 0:
        return stages
    return [Open(room), *stages, Close(room)] if room <= MOST else None
