"""Which benchmarks exist, and which jobs a run consists of."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


EFFORTS = {
    "targets": Effort(1.5, 5),
    "quick": Effort(0.25, 3),
    "full": Effort(3.0, 5),
    "cuda": Effort(0.5, 10),
}


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
    allocators = allocators if device == "cpu" else (DEFAULT,)
    jobs = []
    for name, each in chosen.items():
        if effort == "targets":
            wanted = _promised(each, device, shapes, against)
        else:
            wanted = _declared(each, "cuda" if device == "cuda" else effort, shapes, against, allocators)
        for shape, mode, allocator, peers in wanted:
            jobs.append(Job(name, shape, mode, allocator, device, effort, backend, peers, patience))
    return sorted(
        (job for job in jobs if job.allocator in allocators), key=lambda job: allocators.index(job.allocator)
    )


Wanted = Iterator[tuple[str, str, str, tuple[str, ...]]]  # shape, mode, allocator, peers (none: all)


def _declared(
    bench: Bench, which: str, shapes: Sequence[str], against: Sequence[str], allocators: Sequence[str]
) -> Wanted:
    """Every mode and allocator of the named shapes, or of those of the set."""
    for shape in shapes or map(label, bench.chosen(which)):
        if shape in bench.every_shape():
            yield from (
                (shape, mode, allocator, tuple(against)) for mode in bench.modes for allocator in allocators
            )


def _promised(bench: Bench, device: str, shapes: Sequence[str], against: Sequence[str]) -> Wanted:
    """What the targets speak of, and no more."""
    peers = {peer.name for peer in bench.peers}
    found: dict[tuple[str, str, str], set[str]] = {}
    for target in bench.targets:
        if target.device == device and (not shapes or target.shape in shapes):
            named = found.setdefault((target.shape, target.mode, target.allocator), set())
            named.update({target.against} & peers)
    for key, named in found.items():
        yield *key, tuple(against) or tuple(sorted(named))


def _known(option: str, given: Iterable[str], valid: Iterable[str]) -> None:
    for name in given:
        if name not in valid:
            raise UsageError(f"{option} {name!r} does not exist; expected one of: {', '.join(sorted(valid))}")
