"""Verdicts on record: kept, missed, and what a process leaves that is killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from sequence_kernels.proofs.ledger import Ledger, Verdict, standard_root

VERDICT = Verdict(False, "case 'x' raised an error", None, 0.5, "a GPU", "2026-11-29")
NAME = "vandermonde-cuda-float32"

KILLED = """
import os, sys
from pathlib import Path
from sequence_kernels.proofs.ledger import Ledger
with Ledger(Path(sys.argv[1]), {}).turn("vandermonde-cuda-float32"):
    os._exit(9)
"""


def test_a_verdict_holds_for_its_place(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {"torch": "2.13"})
    assert ledger.read(NAME) is None
    ledger.write(NAME, VERDICT)
    assert Ledger(tmp_path, {"torch": "2.13"}).read(NAME) == VERDICT
    assert Ledger(tmp_path, {"torch": "2.14"}).read(NAME) is None
    ledger.forget(NAME)
    assert ledger.read(NAME) is None


def test_damaged_records_are_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    ledger.write(NAME, VERDICT)
    (file,) = tmp_path.glob(f"*/{NAME}.json")
    for text in ("", "{", "[]", '{"passed": true}'):
        file.write_text(text)
        assert ledger.read(NAME) is None


def test_a_process_that_is_killed_leaves_its_mark_and_another_does_not(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {})
    with ledger.turn(NAME) as left:
        assert left == ""
    with contextlib.suppress(ValueError), ledger.turn(NAME):
        raise ValueError("as it may")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    with ledger.turn(NAME) as left:
        assert left.startswith("process ")
    with ledger.turn(NAME) as left:
        assert left == ""


@pytest.mark.parametrize("root", [None, Path("/proc/no/such/folder"), Path(__file__) / "a file is no folder"])
def test_without_a_place_to_write_nothing_is_kept_and_nothing_fails(root: Path | None) -> None:
    ledger = Ledger(root, {})
    ledger.write(NAME, VERDICT)
    ledger.forget(NAME)
    assert ledger.read(NAME) is None
    with ledger.turn(NAME) as left:
        assert left == ""


def test_a_full_disk_is_not_the_callers_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path, {})
    monkeypatch.setattr("os.pwrite", full)
    monkeypatch.setattr("os.fdopen", full)
    with ledger.turn(NAME) as left:
        assert left == ""
    ledger.write(NAME, VERDICT)
    assert ledger.read(NAME) is None


def test_there_may_be_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert standard_root() is None
