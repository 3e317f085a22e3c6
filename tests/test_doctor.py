"""`python -m sequence_kernels`: what it says, and when it exits with 1."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sequence_kernels import doctor, native, ops
from sequence_kernels.ops import dispatch


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def test_it_is_a_command_and_its_exit_code_says_whether_something_is_broken() -> None:
    command = [sys.executable, "-m", "sequence_kernels", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)
    assert done.returncode == (1 if said["broken"] else 0)
    assert set(said) == {
        "installation",
        "versions",
        "devices",
        "libraries",
        "backends",
        "proofs",
        "self_test",
        "broken",
    }


def test_every_op_has_a_backend_and_a_reason_against_each_other(report: dict[str, Any]) -> None:
    assert tuple(report["backends"]) == ops.operations()
    for choices in report["backends"].values():
        for choice in choices.values():
            assert {choice["chosen"], *choice["others"]} == set(ops.BACKENDS)
            assert all(choice["others"].values())


def test_the_text_names_every_op_and_every_reason(report: dict[str, Any]) -> None:
    text = doctor.text(report)
    for op in ops.operations():
        assert op in text
    assert "self-test" in text
    assert text.endswith("nothing that is installed is broken") == (not report["broken"])


def test_a_library_that_does_not_load_is_broken_and_one_that_is_absent_is_not(report: dict[str, Any]) -> None:
    library = {"installed": True, "was_built": True, "unavailable": "it is damaged; install again"}
    library |= {"built_with": None}
    damaged = report | {"libraries": report["libraries"] | {"cpu": library}}
    assert doctor.broken(damaged) == ["the cpu library: it is damaged; install again"]
    assert "BROKEN: the cpu library" in doctor.text(damaged | {"broken": doctor.broken(damaged)})
    gone = report | {"libraries": report["libraries"] | {"cpu": library | {"installed": False}}}
    assert len(doctor.broken(gone)) == 1
    never = library | {"installed": False, "was_built": False}
    absent = report | {"libraries": report["libraries"] | {"cpu": never}}
    assert doctor.broken(absent) == []


@pytest.mark.parametrize("error", [2e-3, float("nan")])
def test_a_wrong_result_is_broken(report: dict[str, Any], error: float) -> None:
    wrong = report | {"self_test": {"cpu": {"S4 step": error}}}
    assert "S4 step has a relative error of" in doctor.broken(wrong)[0]
    raised = report | {"self_test": {"cpu": "RuntimeError: no such thing"}}
    assert doctor.broken(raised) == ["the self-test on cpu raised RuntimeError: no such thing"]


def test_the_self_test_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = dispatch._implementations["ssm_conv"]["torch"].run

    def wrong(*arguments: Any) -> Any:
        y, state = right(*arguments)
        return y * 1.01, state

    entry = dispatch.Implementation(wrong, lambda device, dtype: None)
    monkeypatch.setitem(dispatch._implementations["ssm_conv"], "cpu", entry)
    dispatch.forget()
    errors = doctor.self_test("cpu")
    assert errors["S4D forward"] > 1e-3
    dispatch.forget()


@pytest.mark.parametrize(
    ("capability", "served"),
    [("70", False), ("75", True), ("86", True), ("87", True), ("99", False), ("121", True)],
)
def test_which_gpus_a_library_serves(report: dict[str, Any], capability: str, served: bool) -> None:
    built = {"architectures": ["75", "86", "120"], "ptx": "120"}
    library = {"installed": True, "was_built": True, "unavailable": None, "built_with": built}
    gpu = {"device": "cuda:0", "name": "a GPU", "capability": capability}
    said = doctor.broken(
        report | {"libraries": report["libraries"] | {"cuda": library}, "devices": [*report["devices"], gpu]}
    )
    assert (said == []) == served


def test_a_missing_library_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(native, "_reasons", {})
    dispatch.forget()
    dispatch._warn_once.cache_clear()
    v = torch.ones(3, dtype=torch.complex64)
    try:
        with pytest.warns(RuntimeWarning, match=r"plain torch, which is slower: .*pip install"):
            ops.vandermonde(v, -v, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ops.cauchy(v, 1j * v, -v)
    finally:
        dispatch.forget()
        dispatch._warn_once.cache_clear()
