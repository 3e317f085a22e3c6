"""Which kernels have to be compiled, and what the budget says of them.

A unit whose digest is the one in budget.json was measured as it stands, and is compiled again only on demand.
"""

from __future__ import annotations

from typing import Protocol

from . import budget, nvcc, triton_units


class Compiler(Protocol):
    TARGETS: tuple[str, ...]
    FAST_TARGETS: tuple[str, ...]  # those of `make test`

    def skip_reason(self) -> str | None: ...

    def version(self) -> str: ...

    def units(self, targets: tuple[str, ...]) -> list[str]: ...

    def digest(self, unit: str, version: str) -> str: ...

    def measure(self, units: list[str]) -> budget.Measurement: ...


COMPILERS: dict[str, Compiler] = {"nvcc": nvcc, "triton": triton_units}


def digests(name: str, targets: tuple[str, ...]) -> dict[str, str]:
    compiler = COMPILERS[name]
    version = compiler.version()
    return {unit: compiler.digest(unit, version) for unit in compiler.units(targets)}


def stale(name: str) -> list[str]:
    """What is wrong with the record of every target: units that are not as they were measured. Compiles nothing."""
    record, compiler = budget.read(), COMPILERS[name]
    known, version = record["digests"][name], record["tools"][name]
    return [
        f"the code of {unit} is not what was measured; {budget.REGENERATE}"
        for unit in compiler.units(compiler.TARGETS)
        if known.get(unit) != compiler.digest(unit, version)
    ]


def complaints(name: str, targets: tuple[str, ...], *, everything: bool = False) -> list[str]:
    """What is wrong with the units that have changed, or with all; a sentence each.

    A unit that has changed and still fits must be written down, or it would be compiled again in every run.
    """
    record, compiler, now = budget.read(), COMPILERS[name], digests(name, targets)
    same_tool = record["tools"][name] == compiler.version()
    changed = [unit for unit, digest in now.items() if record["digests"][name].get(unit) != digest]
    measured = compiler.measure([*now] if everything else changed)
    return budget.complaints(record[name], measured, same_tool=same_tool) or [
        f"{unit} is within its budget, but its code is not what was measured; {budget.REGENERATE}"
        for unit in changed
        if same_tool
    ]


def write(*, everything: bool) -> None:
    """Measure the units that have changed, or all, and write the budget; what no longer exists goes."""
    record = budget.read()
    for name, compiler in COMPILERS.items():
        now = digests(name, compiler.TARGETS)
        known = {} if everything else record["digests"][name]
        measured = compiler.measure([unit for unit, digest in now.items() if known.get(unit) != digest])
        record[name] = {unit: measured[unit] if unit in measured else record[name][unit] for unit in now}
        record["digests"][name] = now
        record["tools"][name] = compiler.version()
    budget.write(record)
