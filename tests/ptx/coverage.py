"""Which instructions of the kernels' PTX for sm_80 the tests reach.

    python -m tests.ptx.coverage nvcc | triton [show | check | write] [pytest arguments]

runs the tests of tests/ops/*/test_cuda.py or test_triton.py on it, thorough ones too, and prints each kernel's share
and the lines that it lacks; "check" fails where coverage.json has more or all together are below LEAST, "write" writes
that. What no launch can reach stands there too, by hand, each with its reason, and does not count.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.aot import nvcc, triton_units

from .machine import ROOT, Ptx, of_architecture, sources
from .triton import TritonPtx, of_target

RECORD = Path(__file__).with_name("coverage.json")
#: A few instructions more or less are no loss.
SLACK = 0.005
#: What shall be reached of all kernels together, by compiler; but for families that the record names as apart.
LEAST = {"nvcc": 0.97, "triton": 0.97}


class Reached(NamedTuple):
    """Of a kernel: instructions of its PTX that can be reached, those that a warp has executed, and the source lines of
    the others."""

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


def without_unreachable(found: Reached, kernel: str, listed: Iterable[Mapping[str, Any]]) -> Reached:
    """As many instructions of a file that the kernel lacks, at most, as the record says that it must lack."""
    for each in listed:
        if each["kernel"] == kernel:
            lacking = sum(n for place, n in found.missing.items() if place.startswith(each["file"] + ":"))
            fewer = found.instructions - min(lacking, each["instructions"])
            found = found._replace(instructions=fewer)
    return found


def together(found: Mapping[str, Reached], apart: Iterable[str]) -> float:
    """The share of all kernels' instructions, but for those whose names begin so."""
    return total({kernel: r for kernel, r in found.items() if not kernel.startswith(tuple(apart))})


def of_machine(machine: Ptx) -> dict[str, Reached]:
    """By kernel: every one of csrc/, launched or not."""
    return {
        kernel: reached(machine.file(source), kernel)
        for source in sources()
        for kernel in machine.file(source).kernels
    }


def of_triton(machine: TritonPtx) -> dict[str, Reached]:
    """By kernel: all that was compiled of it, for other types and sizes, together."""
    found: dict[str, Reached] = {}
    for file in machine.files.values():
        for kernel in file.kernels:
            one, other = reached(file, kernel), found.get(kernel, Reached(0, 0, Counter()))
            sums = (one.instructions + other.instructions, one.executed + other.executed)
            found[kernel] = Reached(*sums, one.missing + other.missing)
    return found


def total(of: dict[str, Reached]) -> float:
    return sum(r.executed for r in of.values()) / sum(r.instructions for r in of.values())


class Compiler(NamedTuple):
    """``tests``: files, and what pytest's -k selects of them."""

    version: Callable[[], str]
    tests: tuple[str, str]
    reached: Callable[[], dict[str, Reached]]


COMPILERS = {
    "nvcc": Compiler(nvcc.version, ("test_cuda.py", "sm_80"), lambda: of_machine(of_architecture("sm_80"))),
    "triton": Compiler(
        triton_units.version, ("test_triton.py", "cuda and 80"), lambda: of_triton(of_target("cuda 80"))
    ),
}


def run_tests(compiler: str, arguments: list[str]) -> dict[str, Reached]:
    file, keyword = COMPILERS[compiler].tests
    tests = [str(path) for path in sorted(Path(ROOT / "tests" / "ops").glob(f"*/{file}"))]
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "--torch-threads", "1"]
    options += ["-k", keyword, "-m", "thorough or not thorough"]
    if pytest.main([*tests, *options, *arguments]) != 0:
        raise RuntimeError("a test has failed: what it reached says little")
    return COMPILERS[compiler].reached()


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
    return "\n".join([*rows, f"{100 * total(found):.2f} % of the instructions of {len(found)} kernels"])


def main(compiler: str, command: str = "show", *arguments: str) -> int:
    record = json.loads(RECORD.read_text())
    listed = record[compiler]["unreachable"]
    found = {
        kernel: without_unreachable(reached, kernel, listed)
        for kernel, reached in run_tests(compiler, list(arguments)).items()
    }
    print(table(found))
    version = COMPILERS[compiler].version()
    shares = {kernel: round(r.share, 4) for kernel, r in sorted(found.items())} | {
        "all": round(together(found, record[compiler]["apart"]), 4)
    }
    if command == "write":
        record[compiler] |= {"version": version, "reached": shares}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    if command != "check" or record[compiler]["version"] != version:
        return 0
    lost = losses(shares, record[compiler]["reached"])
    if shares["all"] < LEAST[compiler]:
        lost.append(f"all kernels: {100 * shares['all']:.2f} % are reached of {100 * LEAST[compiler]:.0f} %")
    print("\n".join(lost) or "no kernel is reached less than before")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
