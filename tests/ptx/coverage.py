"""Which instructions of the kernels' PTX the tests reach.

    python -m tests.ptx.coverage [sm_80] [pytest arguments]

runs the tests of tests/ops/*/test_cuda.py on that PTX and prints each kernel's share and the lines that it lacks.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .machine import ROOT, Ptx, of_architecture, sources


class Reached(NamedTuple):
    """Of a kernel: instructions of its PTX, those that a warp has executed, and the source lines of the others."""

    instructions: int
    executed: int
    missing: Counter[str]

    @property
    def share(self) -> float:
        return self.executed / self.instructions


def reached(file: Any, kernel: str) -> Reached:
    """A line of PTX that is in several places, that of a function for instance, is reached when one of them is."""
    lines: dict[int, bool] = {}
    places: dict[int, str] = {}
    for _, line, place, executed in file.instructions(kernel):
        lines[line] = lines.get(line, False) or executed > 0
        places[line] = place.partition(" (")[0]
    missing = Counter(places[line] for line, done in lines.items() if not done)
    return Reached(len(lines), sum(lines.values()), missing)


def of_machine(machine: Ptx) -> dict[str, Reached]:
    """By kernel: every one of csrc/, launched or not."""
    return {
        kernel: reached(machine.file(source), kernel)
        for source in sources()
        for kernel in machine.file(source).kernels
    }


def total(of: dict[str, Reached]) -> float:
    return sum(r.executed for r in of.values()) / sum(r.instructions for r in of.values())


def run_tests(architecture: str, arguments: list[str]) -> dict[str, Reached]:
    tests = [str(path) for path in sorted(Path(ROOT / "tests" / "ops").glob("*/test_cuda.py"))]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-k", architecture]
    if pytest.main([*tests, *options, *arguments]) != 0:
        raise RuntimeError("a test has failed: what it reached says little")
    return of_machine(of_architecture(architecture))


def main(arguments: list[str]) -> None:
    architecture = arguments.pop(0) if arguments and arguments[0].startswith("sm_") else "sm_80"
    found = run_tests(architecture, arguments)
    for kernel, r in sorted(found.items(), key=lambda item: item[1].share):
        lines = ", ".join(f"{place} ({n})" for place, n in r.missing.most_common(12))
        print(f"{kernel:45} {r.executed:6} of {r.instructions:6}  {100 * r.share:5.1f} %  {lines}")
    print(f"{architecture}: {100 * total(found):.2f} % of the instructions of {len(found)} kernels")


if __name__ == "__main__":
    main(sys.argv[1:])
