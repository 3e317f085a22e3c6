"""Kernels with one instruction changed: do their tests notice?

    python -m tests.ptx.mutants FAMILY [count] [seed]

changes one instruction at a time of the sm_80 PTX that the family's tests reach (tests/ptx/coverage.py counts what they
do not), runs those tests of tests/ops/FAMILY/test_cuda.py that launch the kernel, each mutant in a process of its own,
and prints the mutants that no test noticed. It fails where fewer than LEAST were noticed of those that mutants.json
does not list by hand as "same": their results are those of the kernel, for the reason that stands there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .file import File
from .machine import ROOT, Ptx, of_architecture, source_of, sources
from .mutations import KINDS, changed
from .nvcc import compiled

ARCHITECTURE = "sm_80"
RECORD = Path(__file__).with_name("mutants.json")
#: What shall be noticed of a family's mutants.
LEAST = 0.95
OPTIONS = [
    "-q",
    "-x",
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:warnings",
    "--tb=no",
    "--torch-threads",
    "1",
]
#: Instructions that a launch of a mutant may take, and seconds that its tests may take, which is noticed too.
LIMIT, SECONDS = 20_000_000, 300


class Mutant(NamedTuple):
    kernel: str
    kind: str
    line: int
    place: str
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.kind} at {self.place}: {self.before} -> {self.after}"


class Launches:
    """A pytest plugin: the tests that launch each kernel, in their order."""

    def __init__(self, machine: Ptx) -> None:
        self.of: dict[str, list[str]] = defaultdict(list)
        self._machine, self._launch = machine, machine.launch

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        def launch(kernel: str, *arguments: Any, **options: Any) -> None:
            if item.nodeid not in self.of[kernel]:
                self.of[kernel].append(item.nodeid)
            self._launch(kernel, *arguments, **options)

        self._machine.launch = launch  # type: ignore[method-assign]
        try:
            return (yield)
        finally:
            self._machine.launch = self._launch  # type: ignore[method-assign]


def run(arguments: list[str], plugins: list[Any]) -> bool:
    """Have the tests passed?"""
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.main([*OPTIONS, *arguments], plugins=plugins) == 0


class Baseline(NamedTuple):
    """What the tests do without a mutant: the instructions that they reach, and the tests that launch a kernel."""

    places: list[tuple[str, int, str]]  # kernel, line of the PTX, source
    tests: dict[str, list[str]]


def baseline(machine: Ptx, family: str) -> Baseline:
    """Found in a process of its own: one that has launched kernels cannot be forked."""
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        launches = Launches(machine)
        passed = run([str(ROOT / "tests" / "ops" / family / "test_cuda.py"), "-k", ARCHITECTURE], [launches])
        files = [machine.file(source) for source in sources() if source.parent.name == family]
        # A line of a function stands in several places.
        places = sorted(
            {
                (kernel, i.line, i.source.rpartition(" (")[-1].rstrip(")"))
                for file in files
                for kernel in file.kernels
                for i in file.instructions(kernel)
                if i.executed
            }
        )
        with os.fdopen(its, "wb") as answer:
            pickle.dump((passed, places, dict(launches.of)), answer)
        os._exit(0)
    os.close(its)
    with os.fdopen(mine, "rb") as answer:
        passed, places, tests = pickle.load(answer)
    os.waitpid(child, 0)
    if not passed:
        raise RuntimeError(f"the tests of {family} fail without a mutant")
    return Baseline(places, tests)


def mutants(places: list[tuple[str, int, str]], count: int, seed: int) -> Iterator[Mutant]:
    """As many of each kind, of any instruction that was reached."""
    chosen = random.Random(seed)
    texts: dict[Path, str] = {}
    kinds = [kind for kind in KINDS for _ in range(-(-count // len(KINDS)))][:count]
    for kind in kinds:
        while True:
            kernel, line, place = chosen.choice(places)
            source = source_of(kernel)
            text = texts.setdefault(source, compiled(source, ARCHITECTURE).read_text())
            other = changed(text, line, kind, chosen)
            if other is not None:
                break
        before, after = (t.splitlines()[line - 1].strip() for t in (text, other))
        yield Mutant(kernel, kind, line, place, before, after, other)


def noticed(machine: Ptx, mutant: Mutant, tests: list[str]) -> bool:
    """By one of the tests: it fails, or its process ends or does not end."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            machine.limit = LIMIT
            machine.files[source_of(mutant.kernel)] = File(mutant.text)
            os._exit(0 if run(tests, []) else 1)
        except BaseException:
            os._exit(2)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def survivors(family: str, count: int = 40, seed: int = 0) -> list[Mutant]:
    machine = of_architecture(ARCHITECTURE)
    importlib.import_module(f"tests.ops.{family}.test_cuda")
    places, tests = baseline(machine, family)
    found = []
    for mutant in mutants(places, count, seed):
        if not noticed(machine, mutant, tests[mutant.kernel]):
            print(mutant, flush=True)
            found.append(mutant)
    return found


def share(survivors: Iterable[str], count: int, same: Mapping[str, str]) -> float:
    """Of the mutants that could be noticed, those that were."""
    survivors = list(survivors)
    listed = sum(mutant in same for mutant in survivors)
    return (count - len(survivors)) / (count - listed)


def main(family: str, count: str = "40", seed: str = "0") -> int:
    same = json.loads(RECORD.read_text())["same"].get(family, {})
    left = [str(mutant) for mutant in survivors(family, int(count), int(seed))]
    noticed, listed = int(count) - len(left), sum(mutant in same for mutant in left)
    print(f"{family}: {noticed} of {count} mutants were noticed, {listed} others cannot be")
    return 0 if share(left, int(count), same) >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
