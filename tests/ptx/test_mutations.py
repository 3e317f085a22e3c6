"""What a mutant changes in an instruction."""

from __future__ import annotations

import json
import subprocess
import sys
from random import Random

import pytest

from .coverage import COMPILERS
from .machine import skip_reason
from .mutants import LEAST, PAGE, RECORD, Result, families, in_page, recorded
from .mutations import changed, chooses_division, statement

LINES = """.visible .entry k() {
\t.reg .b32 %r<9>;
\tadd.s32 \t%r1, %r2, %r3;
\t@%p1 bra \t$L__BB0_2;
\tmov.f32 \t%f1, 0f3F800000;
\tld.global.f32 \t%f2, [%rd1+4];
\tbar.sync \t0;
}
""".splitlines()


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
    other = changed(LINES, line, kind, Random(0))
    assert (other and other[line - 1].strip()) == expected


def test_a_register_becomes_another_source() -> None:
    found = {changed(LINES, 3, "register", Random(seed))[2].strip() for seed in range(20)}
    assert found <= {f"add.s32 \t%r1, %r{a}, %r{b};" for a in (1, 2, 3) for b in (1, 2, 3)}
    assert len(found) == 4


def test_a_statement_is_its_parts() -> None:
    for line in LINES[2:-1]:
        assert str(statement(line)) == line


def test_what_chooses_a_division_is_left_alone() -> None:
    """The results of both are the same."""
    text = ["and.b64 \t%rd4, %rd1, -4294967296;", "setp.eq.s64 \t%p1, %rd4, 0;", "@%p1 bra \t$L__BB0_3;"]
    text += ["div.s64 \t%rd5, %rd1, %rd2;", "setp.eq.s64 \t%p2, %rd5, 0;", "@%p2 bra \t$L__BB0_4;"]
    assert [chooses_division(text, line) for line in range(1, 7)] == [True, True, True, False, False, False]
    assert changed(text, 2, "immediate", Random(0)) is None
    assert changed(text, 5, "immediate", Random(0)) is not None


def test_mutants_with_the_same_result_do_not_count() -> None:
    assert Result(40, {}, {}).share == 1
    assert Result(40, {}, {"one": "", "two": ""}).share == 0.95
    assert Result(40, {"three": "no lane comes here twice"}, {"one": "", "two": ""}).share == 37 / 39


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_family_is_recorded_and_every_survivor_explained(compiler: str) -> None:
    apart = json.loads(RECORD.read_text())[compiler]["apart"]
    assert all(apart.values())
    for family in {*families(compiler)} - {*apart}:
        found = recorded(compiler, family)
        assert found.drawn, (
            f"{family} has not been tried: python -m tests.ptx.mutants {compiler} write {family}"
        )
        assert found.share >= LEAST, family
        assert all({**found.same, **found.other}.values()), family


def test_the_table_is_that_of_the_record() -> None:
    assert in_page(PAGE.read_text()) == PAGE.read_text()


@pytest.mark.thorough
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_tests_notice_mutants(compiler: str) -> None:
    if json.loads(RECORD.read_text())[compiler]["version"] != COMPILERS[compiler].version():
        pytest.skip(f"the record is of another {compiler}")
    command = [sys.executable, "-m", "tests.ptx.mutants", compiler, "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
