"""Which instructions of the kernels' PTX for sm_80 the tests reach.

    python -m tests.ptx.coverage [show | check | write] [pytest arguments]

runs the tests of tests/ops/*/test_cuda.py on it, thorough ones too, and prints each kernel's share and the lines that
it lacks; "check" fails where coverage.json has more, "write" writes that. README.md says what cannot be reached.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.aot.nvcc import version

from .machine import ROOT, Ptx, of_architecture, sources

ARCHITECTURE, EVERY_TEST = "sm_80", ("-m", "thorough or not thorough")
RECORD = Path(__file__).with_name("coverage.json")
#: A few instructions more or less are no loss.
SLACK = 0.005


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


def run_tests(arguments: list[str]) -> dict[str, Reached]:
    tests = [str(path) for path in sorted(Path(ROOT / "tests" / "ops").glob("*/test_cuda.py"))]
    options = [
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--torch-threads",
        "1",
        "-k",
        ARCHITECTURE,
        *EVERY_TEST,
    ]
    if pytest.main([*tests, *options, *arguments]) != 0:
        raise RuntimeError("a test has failed: what it reached says little")
    return of_machine(of_architecture(ARCHITECTURE))


def losses(found: Mapping[str, float], recorded: Mapping[str, float]) -> list[str]:
    """Where less is reached than was, or nothing is recorded."""
    return [
        f"{kernel}: {100 * share:.1f} % of its instructions are reached, recorded {100 * recorded.get(kernel, 1):.1f} %"
        for kernel, share in found.items()
        if share < recorded.get(kernel, 1) - SLACK
    ]


def table(found: dict[str, Reached]) -> str:
    rows = []
    for kernel, r in sorted(found.items(), key=lambda item: item[1].share):
        lines = ", ".join(f"{place} ({n})" for place, n in r.missing.most_common(12))
        rows.append(f"{kernel:45} {r.executed:6} of {r.instructions:6}  {100 * r.share:5.1f} %  {lines}")
    whole = f"{100 * total(found):.2f} % of the instructions of {len(found)} kernels"
    return "\n".join([*rows, f"{ARCHITECTURE}: {whole}"])


def main(command: str = "show", *arguments: str) -> int:
    found = run_tests(list(arguments))
    print(table(found))
    shares = {kernel: round(r.share, 4) for kernel, r in sorted(found.items())} | {
        "all": round(total(found), 4)
    }
    if command == "write":
        RECORD.write_text(json.dumps({"nvcc": version(), "reached": shares}, indent=1) + "\n")
    recorded = json.loads(RECORD.read_text())
    if command != "check" or recorded["nvcc"] != version():
        return 0
    lost = losses(shares, recorded["reached"])
    print("\n".join(lost) or "no kernel is reached less than before")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
