"""The table of docs/testing.md: which kernel gets which checks, from the tests' own ``checks`` markers.

``python -m tests.checks_table`` prints it, ``python -m tests.checks_table write`` puts it in its place.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from sequence_kernels import native

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "testing.md"
BEGIN, END = "<!-- written by `python -m tests.checks_table write` -->\n", "<!-- end -->\n"
MARKER = (
    "checks(*what, of=None): the test checks these things of the kernels in `of`, a pattern of <family>/<backend>; "
    "by default of the test's family (its folder, or the op of the parameter `sample`) on the parameter `backend`"
)
COLUMNS = ("oracle", "gradcheck", "emulator", "sanitizers", "PTX", "interpreter", "AOT budget", "GPU")


def kernels() -> dict[str, list[str]]:
    """Every kernel that is not plain torch, by <family>/<backend>, from the sources."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "csrc").glob("*/cpu.cpp")):
        op = path.with_name("register.cpp") if path.with_name("register.cpp").exists() else path
        found[f"{path.parent.name}/cpu"] = re.findall(r'"(\w+)\((?:Tensor|")', op.read_text())
    for path in sorted((ROOT / "csrc").glob("*/*.cu")):
        names = re.findall(r"^KERNEL\((\w+),", path.read_text(), re.MULTILINE)
        found.setdefault(f"{path.parent.name}/cuda", []).extend(names)
    for path in sorted((ROOT / "sequence_kernels" / "ops").glob("*/triton.py")):
        found[f"{path.parent.name}/triton"] = re.findall(
            r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE
        )
    return dict(sorted(found.items()))


def family_of(op: str) -> str:
    """The family, a folder of csrc/, that an op belongs to."""
    return max((p.name for p in (ROOT / "csrc").iterdir() if op.startswith(p.name)), key=len, default=op)


def checked_by(item: pytest.Item) -> str | None:
    """The <family>/<backend> that a parametrized test is about."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if "backend" not in parameters:
        return None
    sample = parameters.get("sample")
    return f"{family_of(sample.op) if sample else item.path.parent.name}/{parameters['backend']}"


#: Where the tests with these markers are.
FOLDERS = ROOT / "tests" / "ops", ROOT / "tests" / "aot"


def checked_in(items: Iterable[pytest.Item]) -> set[tuple[str, str]]:
    """Which <family>/<backend> gets which checks, by the markers of tests."""
    checked: set[tuple[str, str]] = set()
    for item in items:
        for marker in item.iter_markers("checks"):
            of = marker.kwargs.get("of") or checked_by(item)
            if of is None or {*marker.args} - {*COLUMNS}:
                raise pytest.UsageError(f"{item.nodeid}: {MARKER}; what is one of {COLUMNS}")
            checked |= {(of, what) for what in marker.args}
    return checked


def all_in(items: Iterable[pytest.Item]) -> bool:
    """Whether every file of tests of these folders has been read."""
    files = {path for folder in FOLDERS for path in folder.rglob("test_*.py")}
    return files <= {item.path for item in items}


class Collector:
    """A pytest plugin that reads the markers of all tests, and which files could not be read here."""

    def __init__(self) -> None:
        self.checked: set[tuple[str, str]] = set()
        self.skipped: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        if not report.passed:
            self.skipped.append(str(report.nodeid))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.checked = checked_in(session.items)


def collect() -> Collector:
    collector = Collector()
    arguments = [
        "--collect-only",
        "-qq",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        *map(str, FOLDERS),
    ]
    pytest.main(arguments, plugins=[collector])
    return collector


def short(names: list[str]) -> str:
    """Names that differ in their precision only are one."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(re.sub(r"_f(32|64)$", "", name) for name in names))


def table(checked: set[tuple[str, str]]) -> str:
    lines = ["| source | kernels | " + " | ".join(COLUMNS) + " |", "|---|---|" + ":-:|" * len(COLUMNS)]
    for key, names in kernels().items():
        cells = []
        for what in COLUMNS:
            done = any(fnmatch.fnmatch(key, of) for of, check in checked if check == what)
            cells.append("yes" if done else "")
        lines.append(f"| {key} | {short(names)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def replaced(page: str, new: str) -> str:
    before, rest = page.split(BEGIN)
    return before + BEGIN + new + END + rest.split(END)[1]


def main(arguments: list[str]) -> None:
    if native.unavailable("cpu") is not None:
        sys.exit(f"cannot tell without the C++ kernels: {native.unavailable('cpu')}")
    with contextlib.redirect_stdout(io.StringIO()) as log:
        collector = collect()
    if collector.skipped:
        sys.exit(
            f"cannot tell: these could not be read here: {', '.join(collector.skipped)}\n{log.getvalue()}"
        )
    new = table(collector.checked)
    if arguments == ["write"]:
        PAGE.write_text(replaced(PAGE.read_text(), new))
    else:
        print(new, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
