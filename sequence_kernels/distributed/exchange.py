"""The passing of states: what each part makes of zeros, gathered once, and an exclusive scan over the parts.

With part j making ``X -> T_j X + F_j`` of a state, the state before part j is ``X_j = T_{j-1} X_{j-1} + F_{j-1}``.
F_j is all that is sent: O(B H N) numbers, whatever the length; of attention, its keys and values. Each rank does the
whole scan, of as many steps as there are ranks, so that all ranks have the same graph: under torch.compile collectives
of different graphs do not pair up.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..awaited import Elapsed, Transition
from .collectives import gathered

#: A number of elements is sent in digits that half precision holds.
_DIGIT, _DIGITS = 128, 6


class GroupExchange:
    """``awaited.Exchange`` among the ranks of a group, of which rank j holds part j of every sequence.

    ``equal_parts``: all parts of a call have as many elements. Otherwise each learns the others' lengths.
    """

    def __init__(self, group: dist.ProcessGroup, equal_parts: bool = False) -> None:
        self.group = group
        self.equal_parts = equal_parts
        self.rank = torch.tensor([group.rank()])

    def __call__(
        self, start: Tensor, end: Tensor, transition: Transition, elapsed: Elapsed, backwards: bool = False
    ) -> tuple[Tensor, Tensor]:
        real = torch.view_as_real(end.resolve_conj()) if end.is_complex() else end
        passed = elapsed.to(real.dtype) if isinstance(elapsed, Tensor) else _digits(elapsed, real)
        sent = torch.cat((real.flatten(), passed.flatten()))
        parts, passing = gathered(sent, self.group).split([real.numel(), passed.numel()], -1)
        ends = parts.unflatten(-1, real.shape)
        if isinstance(elapsed, Tensor):
            moves = [transition(time.view(elapsed.shape)) for time in passing.to(elapsed.dtype)]
        elif self.equal_parts:
            ends = self._same(ends, passing, passed, elapsed)
            moves = [transition(elapsed)] * len(ends)
        else:
            lengths = self._lengths(passing)
            by_length = {length: transition(length) for length in sorted(set(lengths))}
            moves = [by_length[length] for length in lengths]
        ends = torch.view_as_complex(ends.contiguous()) if end.is_complex() else ends
        order = -1 if backwards else 1
        states = [start.to(end.dtype)]
        for move, one in zip(moves[::order], ends.unbind()[::order], strict=True):
            states.append(move(states[-1]) + one)
        before = torch.stack(states[:-1][::order]).index_select(0, self.rank.to(end.device)).squeeze(0)
        return before, states[-1]

    def joined(self, start: Tensor, part: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            raise ValueError(
                "attention that is split over ranks cannot be compiled: what it sees has another size on each rank"
            )
        own = _digits(part.shape[axis], part)
        lengths = self._lengths(gathered(own, self.group))
        longest = part.movedim(axis, 0)
        longest = torch.cat((longest, longest.new_zeros(max(lengths) - len(longest), *longest.shape[1:])))
        parts = gathered(longest.flatten(), self.group).unflatten(-1, longest.shape)
        real = [one[:length] for one, length in zip(parts, lengths, strict=True)]
        every = torch.cat((start.movedim(axis, 0).to(part.dtype), *real)).movedim(0, axis)
        # A view of what all sent, even of nothing, so that the first rank takes part in the adjoint's collective.
        return every.narrow(axis, 0, start.shape[axis] + sum(lengths[: self.group.rank()])), every

    @staticmethod
    def _lengths(digits: Tensor) -> list[int]:
        if torch.compiler.is_compiling():
            raise ValueError(
                "equal_parts must be True under torch.compile: a graph cannot know other ranks' lengths"
            )
        powers = [_DIGIT**i for i in range(_DIGITS)]
        return [sum(int(d) * p for d, p in zip(row, powers, strict=True)) for row in digits.tolist()]

    def _same(self, ends: Tensor, digits: Tensor, own: Tensor, length: int) -> Tensor:
        """The ends; where parts are not equal, which a GPU or a graph cannot raise, NaN."""
        same = (digits == own).all()
        if ends.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(same):
            raise ValueError(
                f"equal_parts=True, but x has parts of {self._lengths(digits)} elements; rank {self.group.rank()} has "
                f"{length}"
            )
        return torch.where(same, ends, torch.nan)


def _digits(length: int, like: Tensor) -> Tensor:
    powers = [_DIGIT**i for i in range(_DIGITS)]
    return like.new_tensor([length // power % _DIGIT for power in powers])
