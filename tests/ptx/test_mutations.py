"""Mutants: what is changed in an instruction, and that the tests of a family notice nearly all (thorough)."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import pytest

from .machine import CSRC, skip_reason
from .mutations import KINDS, changed, statement

TEXT = """.visible .entry k() {
\t.reg .b32 %r<9>;
\tadd.s32 \t%r1, %r2, %r3;
\t@%p1 bra \t$L__BB0_2;
\tmov.f32 \t%f1, 0f3F800000;
\tld.global.f32 \t%f2, [%rd1+4];
\tbar.sync \t0;
}
"""


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        (3, "operator", "sub.s32 \t%r1, %r2, %r3;"),
        (4, "predicate", "@!%p1 bra \t$L__BB0_2;"),
        (5, "immediate", "mov.f32 \t%f1, 0f3FA00000;"),
        (6, "immediate", "ld.global.f32 \t%f2, [%rd1+8];"),
        (7, "removal", "mov.u32 %removed, 0;"),
        (7, "predicate", None),
        (1, "operator", None),
        (6, "operator", None),
    ],
)
def test_changes(line: int, kind: str, expected: str | None) -> None:
    other = changed(TEXT, line, kind, Random(0))
    assert (other and other.splitlines()[line - 1].strip()) == expected


def test_a_register_becomes_another_source() -> None:
    found = {str(changed(TEXT, 3, "register", Random(seed))).splitlines()[2].strip() for seed in range(20)}
    assert found <= {f"add.s32 \t%r1, %r{a}, %r{b};" for a in (1, 2, 3) for b in (1, 2, 3)}
    assert len(found) == 4


def test_a_statement_is_its_parts() -> None:
    for line in TEXT.splitlines()[2:-1]:
        assert str(statement(line)) == line


@pytest.mark.thorough
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
@pytest.mark.parametrize("family", sorted({path.parent.name for path in CSRC.glob("*/cuda*.cu")}))
def test_nearly_every_mutant_is_noticed(family: str) -> None:
    """Two of each kind; README.md says which of 40 are not noticed, and why."""
    count = 2 * len(KINDS)
    command = [sys.executable, "-m", "tests.ptx.mutants", family, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    noticed = int(done.stdout.splitlines()[-1].split()[1])
    assert noticed >= 0.7 * count, done.stdout
