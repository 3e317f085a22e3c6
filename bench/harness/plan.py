"""Which benchmarks exist, and which jobs a run consists of."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import bench
from bench.harness.declare import DEFAULT, KEEPS, Bench, label

ALLOCATORS = (DEFAULT, KEEPS)


class UsageError(ValueError):
    """A name on the command line that does not exist; the message lists those that do."""


@dataclass(frozen=True)
class Effort:
    """How long a pair is measured: seconds of interleaved rounds, and how many rounds at least."""

    seconds: float
    least: int


EFFORTS = {"quick": Effort(0.25, 3), "full": Effort(3.0, 5), "cuda": Effort(0.5, 10)}


@dataclass(frozen=True)
class Job:
    """One operation on one shape in one mode: our call against each peer, in one process."""

    KEY: ClassVar = ("op", "shape", "mode", "allocator", "device")

    op: str
    shape: str
    mode: str
    allocator: str
    device: str
    effort: str
    backend: str | None = None
    against: tuple[str, ...] = ()
    patience: float = 0.0  # seconds to wait for other programs to leave the cores alone

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in self.KEY)


def benches() -> dict[str, Bench]:
    """Every benchmark by the name of its file."""
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if not module.ispkg]
    modules = {
        name: importlib.import_module(f"bench.{name}") for name in names if not name.startswith(("_", "test"))
    }
    return {name: module.BENCH for name, module in modules.items() if hasattr(module, "BENCH")}


def plan(
    known: Mapping[str, Bench],
    effort: str,
    device: str = "cpu",
    ops: Sequence[str] = (),
    shapes: Sequence[str] = (),
    backend: str | None = None,
    against: Sequence[str] = (),
    allocators: Sequence[str] = ALLOCATORS,
    patience: float = 0.0,
) -> list[Job]:
    """The jobs, one allocator setting after the other; names that do not exist raise UsageError."""
    _known("--op", ops, known)
    chosen = {name: known[name] for name in ops or known}
    _known("--shape", shapes, {name for each in chosen.values() for name in each.every_shape()})
    _known("--against", against, {peer.name for each in chosen.values() for peer in each.peers})
    which = "cuda" if device == "cuda" else effort
    jobs = []
    for allocator in allocators if device == "cpu" else (DEFAULT,):
        for name, each in chosen.items():
            wanted = {key: shape for key, shape in each.every_shape().items() if key in shapes}
            for shape in wanted.values() if shapes else each.chosen(which):
                for mode in each.modes:
                    jobs.append(
                        Job(
                            name,
                            label(shape),
                            mode,
                            allocator,
                            device,
                            effort,
                            backend,
                            tuple(against),
                            patience,
                        )
                    )
    return jobs


def _known(option: str, given: Iterable[str], valid: Iterable[str]) -> None:
    for name in given:
        if name not in valid:
            raise UsageError(f"{option} {name!r} does not exist; expected one of: {', '.join(sorted(valid))}")
