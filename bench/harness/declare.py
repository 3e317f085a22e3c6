"""The words a benchmark file is written in: Bench, Peer, Cost, Counted, Target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

Shape = Mapping[str, Any]
Inputs = dict[str, Any]

FORWARD, BOTH = "forward", "forward+backward"
DEFAULT, KEEPS = "default", "keeps pages"
AUTOMATIC = "automatic"  # the backend of a layer: its ops choose theirs one by one
SETS = ("quick", "full", "cuda")


def label(shape: Shape) -> str:
    """A shape's name: `dict(H=8, L=64, z="imaginary")` is "H8-L64-imaginary"."""
    return "-".join(value if isinstance(value, str) else f"{key}{value}" for key, value in shape.items())


def grid(**sizes: Any) -> tuple[Shape, ...]:
    """All shapes with these sizes; a tuple holds the values one size takes in turn."""
    values = [value if isinstance(value, tuple) else (value,) for value in sizes.values()]
    return tuple(dict(zip(sizes, each, strict=True)) for each in product(*values))


def same(inputs: Inputs) -> Inputs:
    """No preparation: run on the inputs as they are."""
    return inputs


def unchanged(inputs: Inputs) -> None:
    """Nothing to put back: a run changes none of its inputs."""


def anywhere(device: str) -> str | None:
    """Nothing is needed: runs on every device."""
    return None


def every_shape(shape: Shape) -> str | None:
    """Every shape is served."""
    return None


@dataclass(frozen=True)
class Cost:
    """The least work an operation can do: bytes moved once, float operations (a multiply-add is two),
    reciprocals, and transcendentals (an exponential, sine or cosine is one each)."""

    bytes: int
    flops: int
    reciprocals: int = 0
    transcendentals: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.reciprocals + other.reciprocals,
            self.transcendentals + other.transcendentals,
        )


@dataclass(frozen=True)
class Counted:
    """What a call costs by a count by hand, on a shape small enough to count."""

    shape: Shape
    mode: str
    cost: Cost


@dataclass(frozen=True)
class Peer:
    """Another way to the same answer.

    run: takes what `setup` made of the inputs (built once, untimed) and returns a tensor or a tuple of tensors.
    restart: puts back what a run changes in place (a carried state); called before answers are compared.
    wrt: entries (tensors or modules) the backward pass differentiates; None takes the benchmark's own.
    unavailable: device type -> None, or one sentence saying what is missing and what to do.
    serves: shape -> None, or why this peer cannot do it.
    tolerance: norm-wise relative difference from our answer above which the peer is not timed.
    quick: False keeps a peer that is slow, or compiles for many seconds, out of `--quick` runs.
    """

    name: str
    run: Callable[[Inputs], Any]
    setup: Callable[[Inputs], Inputs] = same
    restart: Callable[[Inputs], None] = unchanged
    wrt: tuple[str, ...] | None = None
    unavailable: Callable[[str], str | None] = anywhere
    serves: Callable[[Shape], str | None] = every_shape
    tolerance: float = 1e-3
    quick: bool = True


@dataclass(frozen=True)
class Target:
    """One promise: `against` is a peer's name (times faster, or times less memory), or one of this machine's
    ceilings ("sgemm", "copy", "roofline"), of which our forward pass must reach the share `at_least`."""

    issue: int
    work: str
    shape: str
    against: str
    at_least: float
    mode: str = FORWARD
    quantity: str = "time"
    allocator: str = DEFAULT
    device: str = "cpu"


@dataclass(frozen=True)
class Bench:
    """One operation: what to run, on what, against whom, and what it must cost at least.

    entry: dotted name below `sequence_kernels` of what is measured; while it does not exist the rows are skipped.
    shapes: "quick", "full" (quick ones are part of it) and "cuda" lists of shapes.
    inputs: (shape, device) -> named tensors, from torch's global generator, which the harness seeds.
    cost: (shape, mode) -> Cost.
    counted: by hand, each sum spelt out; `cost` must give the same.
    gate: how many times faster than our torch backend the one chosen by itself must be on the first quick shape,
        forward: a wide margin below what is measured, for CI.
    """

    entry: str
    shapes: Mapping[str, tuple[Shape, ...]]
    inputs: Callable[[Shape, torch.device], Inputs]
    run: Callable[[Inputs], Any]
    cost: Callable[[Shape, str], Cost]
    counted: tuple[Counted, ...] = ()
    setup: Callable[[Inputs], Inputs] = same
    restart: Callable[[Inputs], None] = unchanged
    wrt: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    targets: tuple[Target, ...] = ()
    gate: float | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        return (FORWARD, BOTH) if self.wrt else (FORWARD,)

    def chosen(self, which: str) -> list[Shape]:
        """The shapes of a set, without repeats."""
        names = ("quick", "full") if which == "full" else (which,)
        found = {label(shape): shape for name in names for shape in self.shapes.get(name, ())}
        return list(found.values())

    def every_shape(self) -> dict[str, Shape]:
        """All declared shapes by name."""
        return {label(shape): shape for name in SETS for shape in self.shapes.get(name, ())}
