"""Kernels with one instruction changed: do their tests notice?

    python -m tests.ptx.mutants nvcc | triton show | check | write [FAMILY ...]

changes one instruction at a time of the sm_80 PTX that the tests of tests/ops/FAMILY/test_cuda.py, or test_triton.py,
reach (tests/ptx/coverage.py counts what they do not), runs those tests that reach it, the quickest first, each mutant
in a process of its own, and prints the mutants that no test noticed. "check" fails where fewer than LEAST were noticed
of those that mutants.json does not list as "same": their results are those of the kernel, for the reason that stands
there by hand. Families that stand there as "apart", with the reason, are not held to that. "write" writes that file and
the table in docs/testing.md; reasons of new survivors are then missing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from tests.cuda_driver import driver

from .coverage import COMPILERS
from .file import File
from .machine import ROOT, Ptx, of_architecture
from .mutations import KINDS, changed
from .triton import of_target

RECORD = Path(__file__).with_name("mutants.json")
PAGE, BEGIN, END = (
    ROOT / "docs" / "testing.md",
    "<!-- written by `python -m tests.ptx.mutants` -->\n",
    "<!-- end of mutants -->\n",
)
#: Mutants of a family, and what share of them shall be noticed.
COUNT, LEAST = 40, 0.95
#: Kernels that have mutants of their own beside those of their family: the family, and what their names have in common.
PARTS = {"nvcc": {"ssm_conv_pipelined": ("ssm_conv", "pipelined")}, "triton": {}}
#: What is not changed: Triton counts on a warp's lanes in lockstep, in which its barriers do nothing.
LEFT = {"nvcc": (), "triton": ("bar.warp.sync",)}
#: Of Triton's tests `make test` runs few, because compiling takes long.
SELECTED = {"nvcc": "not thorough", "triton": "thorough or not thorough"}
OPTIONS = [
    "-n",
    "0",
    "-s",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:terminal",
    "-p",
    "no:faulthandler",
    "--torch-threads",
    "1",
]
#: A mutant is noticed, too, when a launch takes so many times the instructions of any without it, or its tests so many
#: times their seconds, and these more.
LONGER, SECONDS = 4, 300
#: A kind of mutants of which so many draws find none is left out.
DRAWS = 20_000


class Place(NamedTuple):
    """A line of PTX and its source; ``unit``: what the machine knows the file by."""

    kernel: str
    line: int
    source: str
    unit: Any


class Mutant(NamedTuple):
    place: Place
    kind: str
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        kernel, _, source, _ = self.place
        return f"{kernel}: {self.kind} at {source}: {self.before} -> {self.after}"


class Baseline(NamedTuple):
    """What the tests do without a mutant. ``tests``: by place, those that reach it, the quickest first; ``seconds``: of
    each test; ``most``: the instructions of the longest launch."""

    tests: dict[Place, list[int]]
    texts: dict[Any, str]
    seconds: dict[int, float]
    most: int

    def limit(self, mutant: Mutant) -> float:
        """The seconds that a mutant's tests may take."""
        return SECONDS + LONGER * sum(self.seconds[test] for test in self.tests[mutant.place])


def mutants(
    baseline: Baseline, count: int, seed: int, left: tuple[str, ...] = (), part: str = ""
) -> Iterator[Mutant]:
    """As many of each kind, none twice: of any instruction that was reached in kernels that have ``part`` in their
    names, but those that begin like one of ``left``."""
    chosen, drawn = random.Random(seed), set[str]()
    reached = [place for place in baseline.tests if part in place.kernel]
    places = sorted(reached, key=lambda place: (*place[:3], str(place.unit)))
    texts = {unit: text.splitlines() for unit, text in baseline.texts.items()}
    for kind in [kind for kind in KINDS for _ in range(-(-count // len(KINDS)))][:count]:
        for _ in range(DRAWS):
            place = chosen.choice(places)
            lines = texts[place.unit]
            other = changed(lines, place.line, kind, chosen)
            if other is None:
                continue
            before, after = (each[place.line - 1].strip() for each in (lines, other))
            mutant = Mutant(place, kind, before, after, "\n".join(other) + "\n")
            if str(mutant) not in drawn and not before.startswith(left):
                drawn.add(str(mutant))
                yield mutant
                break


def run_tests(session: pytest.Session, chosen: list[int]) -> bool:
    """Have they passed? The first that fails is the last that runs."""
    items = [session.items[i] for i in chosen]
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return False
    return True


def in_a_child(do: Callable[[], Any], seconds: float) -> Any:
    """What a process of its own makes of it, None if it ends otherwise: one that has launched kernels cannot be
    forked."""
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        with contextlib.suppress(BaseException), os.fdopen(its, "wb") as answer:
            pickle.dump(do(), answer)
        os._exit(0)
    os.close(its)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with os.fdopen(mine, "rb") as answer:
        found = answer.read()
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.waitpid(child, 0)
    return pickle.loads(found) if found else None


class Trial:
    """A pytest plugin: the tests are not run once, but for each mutant those that reach it."""

    def __init__(self, compiler: str, count: int, seed: int, part: str = "") -> None:
        self.machine: Any = of_architecture("sm_80") if compiler == "nvcc" else of_target("cuda 80")
        self.count, self.chosen = count, (seed, LEFT[compiler], part)
        self.drawn = 0
        self.survivors: list[Mutant] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed or not session.items:
            raise RuntimeError("the tests cannot be read, or there are none")
        torch.testing.assert_close(torch.zeros(1), torch.zeros(1))  # which loads much, once for all children
        if isinstance(self.machine, Ptx):
            driver()
        baseline = in_a_child(lambda: self.baseline(session), 60 * SECONDS)
        if baseline is None:
            raise RuntimeError("the tests fail without a mutant")
        for mutant in mutants(baseline, self.count, *self.chosen):
            self.drawn += 1
            run = functools.partial(self.passes, session, baseline, mutant)
            if in_a_child(run, baseline.limit(mutant)):
                print(mutant, flush=True)
                self.survivors.append(mutant)
        return True

    def baseline(self, session: pytest.Session) -> Baseline | None:
        observed = Observed()
        for number in range(len(session.items)):
            with observed.during(number):
                if not run_tests(session, [number]):
                    return None
        units = {file: unit for unit, file in self.machine.files.items()}
        tests = {
            Place(kernel, line, source, units[file]): sorted(by, key=lambda test: observed.seconds[test])
            for (file, kernel, line, source), by in observed.reached.items()
            if file in units  # others are of another target, whose tests have the 80 in a size
        }
        texts = {unit: file.text for file, unit in units.items()}
        return Baseline(tests, texts, observed.seconds, observed.most)

    def passes(self, session: pytest.Session, baseline: Baseline, mutant: Mutant) -> bool:
        self.machine.files[mutant.place.unit] = File(mutant.text)
        limited = functools.partialmethod(File.run, limit=LONGER * baseline.most)
        with mock.patch.object(File, "run", limited):
            return run_tests(session, baseline.tests[mutant.place])


class Observed:
    """Which test reaches which lines of which kernels."""

    def __init__(self) -> None:
        self.most = 0
        self.seconds: dict[int, float] = {}
        #: By file, kernel, line and source: numbers of tests.
        self.reached: dict[tuple[File, str, int, str], list[int]] = defaultdict(list)
        self._counts: dict[tuple[File, str], list[int]] = {}

    @contextlib.contextmanager
    def during(self, test: int) -> Iterator[None]:
        launched, run, began = set(), File.run, time.perf_counter()

        def observed(file: File, kernel: str, *arguments: Any, **options: Any) -> int:
            launched.add((file, kernel))
            executed = run(file, kernel, *arguments, **options)
            self.most = max(self.most, executed)
            return executed

        with mock.patch.object(File, "run", observed):
            yield
        self.seconds[test] = time.perf_counter() - began
        for file, kernel in launched:
            for line, source in self._newly_executed(file, kernel):
                self.reached[file, kernel, line, source].append(test)

    def _newly_executed(self, file: File, kernel: str) -> set[tuple[int, str]]:
        """A line of a function stands in several places."""
        now = file.instructions(kernel)
        before = self._counts.get((file, kernel), [0] * len(now))
        self._counts[file, kernel] = [i.executed for i in now]
        return {
            (i.line, i.source.rpartition(" (")[-1].rstrip(")"))
            for i, n in zip(now, before, strict=True)
            if i.executed > n
        }


def families(compiler: str) -> list[str]:
    """All that have tests of kernels, and the parts of some."""
    file, _ = COMPILERS[compiler].tests
    return sorted([path.parent.name for path in ROOT.glob(f"tests/ops/*/{file}")] + [*PARTS[compiler]])


def tried(compiler: str, family: str, count: int = COUNT, seed: int = 0) -> Trial:
    file, keyword = COMPILERS[compiler].tests
    directory, part = PARTS[compiler].get(family, (family, ""))
    trial = Trial(compiler, count, seed, part)
    test = str(ROOT / "tests" / "ops" / directory / file)
    if pytest.main([test, "-k", keyword, "-m", SELECTED[compiler], *OPTIONS], plugins=[trial]) != 0:
        raise RuntimeError(f"the tests of {family} cannot be run")
    return trial


class Result(NamedTuple):
    """Of a family. ``same`` and ``other``: mutants that no test noticed, by why, which are those whose results are the
    kernel's, and others."""

    drawn: int
    same: dict[str, str]
    other: dict[str, str]

    @property
    def noticed(self) -> int:
        return self.drawn - len(self.same) - len(self.other)

    @property
    def share(self) -> float:
        """Of those that could be."""
        return self.noticed / (self.drawn - len(self.same))


def result(trial: Trial, known: Result) -> Result:
    """With the reasons that are known; a survivor without one is among the others."""
    left = [str(mutant) for mutant in trial.survivors]
    same = {mutant: known.same[mutant] for mutant in left if mutant in known.same}
    return Result(trial.drawn, same, {m: known.other.get(m, "") for m in left if m not in same})


def recorded(compiler: str, family: str) -> Result:
    of = json.loads(RECORD.read_text())[compiler]["families"].get(family)
    return Result(**of) if of else Result(0, {}, {})


def table() -> str:
    """For docs/testing.md."""
    rows = [
        "| family | nvcc: noticed | the same results | others | Triton: noticed | the same results | others |"
    ]
    rows += ["|---|--:|--:|--:|--:|--:|--:|"]
    for family in sorted({*families("nvcc"), *families("triton")}):
        cells = []
        for compiler in COMPILERS:
            of = recorded(compiler, family)
            there = family in families(compiler)
            cells += (
                [f"{of.noticed} of {of.drawn}", str(len(of.same)), str(len(of.other))] if there else [""] * 3
            )
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def in_page(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


def write(compiler: str, family: str, found: Result) -> None:
    record = json.loads(RECORD.read_text())
    record[compiler]["version"] = COMPILERS[compiler].version()
    record[compiler]["families"] = dict(
        sorted({**record[compiler]["families"], family: found._asdict()}.items())
    )
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(in_page(PAGE.read_text()))


def main(compiler: str, command: str, *chosen: str) -> int:
    enough, apart = True, json.loads(RECORD.read_text())[compiler]["apart"]
    for family in chosen or families(compiler):
        found = result(tried(compiler, family), recorded(compiler, family))
        print(
            f"{compiler} {family}: {found.noticed} of {found.drawn} mutants were noticed, "
            f"{len(found.same)} have the same results, {100 * found.share:.1f} % of the others",
            flush=True,
        )
        enough = enough and (found.share >= LEAST or family in apart)
        if command == "write":
            write(compiler, family, found)
    return 0 if enough or command != "check" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
