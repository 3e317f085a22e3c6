"""What an op takes and gives, written once: its schema, and the axes along which many calls of it make one, follow.

    "u: BHL, d?: CH, lengths?: B int, chunk: int"      "y: BCHL, state: BHS"

A tensor has a letter for each dimension, ``...`` for any before the last ones, ``*`` for leading dimensions that
broadcast with those of the others, ``H...`` for any after the first. G are groups: head h takes entry h mod G. K are
groups of neighbours: head h takes entry h // (H / K). ``?`` marks a tensor that may be None, ``!`` one that the op
writes into, ``int`` one of integers, which has no gradient. Tensors come before numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

_NUMBERS = ("int", "SymInt", "bool", "float")


class Argument(NamedTuple):
    name: str
    dims: str  # of a tensor; else the type
    optional: bool
    written: bool
    integers: bool

    @property
    def is_tensor(self) -> bool:
        return self.dims not in _NUMBERS

    @property
    def schema(self) -> str:
        if not self.is_tensor:
            return f"{self.dims} {self.name}"
        return f"Tensor{'(a!)' if self.written else ''}{'?' if self.optional else ''} {self.name}"

    def axis(self, letter: str) -> int | None:
        """Where the letter's dimension is, from the left or (negative) from the right; None if there is none."""
        place = self.dims.removeprefix("...").removeprefix("*").find(letter)
        if place < 0:
            return None
        named = self.dims.lstrip(".*")
        return place - len(named) if named != self.dims else place


class Signature(NamedTuple):
    takes: tuple[Argument, ...]
    gives: tuple[Argument, ...]
    keeps: tuple[Argument, ...] = ()  # results behind the others, for the adjoint alone

    @property
    def results(self) -> tuple[Argument, ...]:
        return (*self.gives, *self.keeps)

    @property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.takes if a.is_tensor)

    @property
    def schema(self) -> str:
        """With the backend behind all the others."""
        results = ", ".join(["Tensor"] * len(self.results))
        results = f"({results})" if len(self.results) > 1 else results
        return f"({', '.join(a.schema for a in self.takes)}, str backend) -> {results}"

    def sizes(self, tensors: tuple[Tensor | None, ...]) -> dict[str, int]:
        """The size of each dimension that a tensor names from the left; of tensors that disagree, the first's."""
        found: dict[str, int] = {}
        for argument, tensor in zip(self.tensors, tensors, strict=True):
            if tensor is not None and argument.dims.isalpha():
                found = dict(zip(argument.dims, tensor.shape, strict=True)) | found
        return found


def _argument(text: str) -> Argument:
    name, _, what = text.partition(": ")
    dims, _, kind = what.partition(" ")
    return Argument(name.rstrip("?!"), dims, "?" in name, "!" in name, kind == "int")


def signature(takes: str, gives: str, keeps: str = "") -> Signature:
    """Parse both sides; ValueError where a tensor comes after a number."""
    found = Signature(
        *(tuple(_argument(part) for part in side.split(", ") if part) for side in (takes, gives, keeps))
    )
    late = [a.name for a in found.takes[len(found.tensors) :] if a.is_tensor]
    if late:
        raise ValueError(
            f"takes must name tensors before numbers, got {', '.join(late)} after one in {takes!r}"
        )
    return found


def adjoint(of: Signature) -> Signature:
    """What computes the gradients: it takes those of the results, then what the op takes and, behind its tensors, what
    it keeps."""
    given = tuple(a._replace(name=f"g_{a.name}") for a in of.gives)
    numbers = of.takes[len(of.tensors) :]
    return Signature(
        (*given, *of.tensors, *of.keeps, *numbers),
        tuple(a._replace(optional=False) for a in of.tensors if not a.integers),
    )
