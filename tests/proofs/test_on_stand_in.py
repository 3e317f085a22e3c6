"""Proofs on the stand-in GPU: which backend serves in the end, who is told, and what later processes know."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_gpu import environment, skip_reason
from tests.stand_in_gpu.build import ROOT

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

NAMED = "sequence_kernels does not use the cuda kernels of vandermonde for float32 on stand-in GPU: "


def scenario(name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.proofs.scenarios", name]
    return subprocess.run(
        command, cwd=ROOT, env=environment(cache), capture_output=True, text=True, check=False
    )


def outcome(name: str, cache: Path) -> dict[str, Any]:
    done = scenario(name, cache)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for all of pytest's workers."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "proofs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def found(cache: Path) -> dict[str, Any]:
    """What one worker finds for all."""
    kept = cache / "found.json"
    with (cache / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(outcome("in_one_process", cache)))
    kept_found: dict[str, Any] = json.loads(kept.read_text())
    return kept_found


def test_cuda_serves_by_default_once_it_is_proven_and_later_processes_know(
    found: dict[str, Any], cache: Path
) -> None:
    first, second = found["by_default"], outcome("by_default", cache)
    assert (first["chosen"], first["warnings"], second["chosen"]) == ("cuda", [], "cuda")
    assert first["launches"] > 10
    assert second["launches"] == 0
    assert re.search(r": cuda \(proven on stand-in GPU, 20\d\d-\d\d-\d\d\)$", second["explained"])
    for run in (first, second):
        assert run["device"] == "cuda:0"
        assert {"ssm_conv_forward", "ssm_conv_backward"} <= set(run["kernels"])
        assert run["error"] < 2e-6
        assert run["gradient"] < 2e-6


@pytest.mark.parametrize(("layer", "most"), [("S4D", 4), ("S4", 6)])
def test_a_layers_forward_pass_is_few_launches(found: dict[str, Any], layer: str, most: int) -> None:
    """Of ours; those of torch are its linear map, activations, and what is left of the discretisation."""
    counted = found["layers"][layer]
    ours = {name: count for name, count in counted.items() if not name.startswith("torch ")}
    assert any(name.startswith("ssm_conv_forward") for name in ours)
    assert any(name.startswith("ssm_chunk") for name in ours)
    assert sum(ours.values()) <= most


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong", r"case 'N=1, L=1, power=0, pairs' has a relative error of 1.0e-03, and 2e-05 is allowed"),
        ("writes", r"has a relative error of 1.0e\+00"),
        ("slow", r"took 0\.\d s"),
        ("launch", r"cannot launch vandermonde_pairs_f32: cuLaunchKernel: an illegal memory access"),
    ],
)
def test_a_fault_ends_in_the_next_backend_with_one_warning(
    found: dict[str, Any], fault: str, said: str
) -> None:
    at_first, later = found["faults"][fault], found["faults"][f"{fault} later"]
    for run in (at_first, later):
        assert run["chosen"] == "triton"
        (warning,) = run["warnings"]
        assert warning.startswith(NAMED)
        assert re.search(said, warning)
        assert "`python -m sequence_kernels prove` makes a report" in warning
    assert found["faults"]["wrong again"]["warnings"] == []


def test_a_lost_device_is_an_error_and_blames_no_other_backend(found: dict[str, Any]) -> None:
    assert "left cuda:0 unusable in this process" in found["lost"]["error"]
    assert found["lost"]["later"]["chosen"] == "triton"


def test_nothing_is_proven_during_capture(found: dict[str, Any]) -> None:
    now = found["not_now"]
    assert (now["capturing"]["chosen"], now["capturing"]["launches"]) == ("torch", 0)
    assert "call the model once before" in now["capturing"]["warnings"][0]
    assert (now["after"]["chosen"], now["after"]["launches"] > 0) == ("cuda", True)
    assert (now["capturing later"]["chosen"], now["capturing later"]["launches"]) == ("cuda", 0)


def test_what_is_not_the_kernels_fault_is_not_put_on_record(found: dict[str, Any]) -> None:
    now = found["not_now"]
    assert now["without memory"]["chosen"] == "torch"
    assert "cannot be proven now: CUDA out of memory" in now["without memory"]["warnings"][0]
    assert (now["with memory"]["chosen"], now["with memory"]["warnings"]) == ("cuda", [])


def test_a_trace_and_the_callers_modes_do_not_reach_the_proof(found: dict[str, Any]) -> None:
    now = found["not_now"]
    assert now["traced"] == ["aten.add.Tensor"]
    assert now["seen"] == [[False, False, 1]]  # no autocast, no gradients, and the stand-in's own mode alone
    assert now["fake"] == "cuda"


def test_threads_and_processes_that_come_together_prove_once(found: dict[str, Any]) -> None:
    together = found["together"]
    assert together["threads"] == ["cuda"] * 8
    assert together["calls of threads"] == together["cases"]
    assert (together["processes"], together["parent"]) == ([0, 0, 0], "cuda")
    assert together["calls of processes"] == together["cases"]


def test_a_kernel_that_kills_its_process_is_not_tried_again(found: dict[str, Any]) -> None:
    later = found["killed"]
    assert (later["killed by"], later["chosen"]) == (signal.SIGKILL, "triton")
    (warning,) = later["warnings"]
    assert re.search(NAMED + r"process \d+ ended before the proof did", warning)


def test_what_is_measured_to_be_the_fastest_serves(found: dict[str, Any]) -> None:
    """By rule CUDA's kernels; here they are slow for few elements, Triton's for many, and torch is between."""
    tuned = found["tuned"]
    assert tuned["before"]["chosen"] == "cuda"
    assert (tuned["after"]["chosen"], tuned["after"]["warnings"]) == ("triton", [])
    assert re.search(
        r": (cuda|triton) \(chosen by measuring on stand-in GPU, 20\d\d-\d\d-\d\d, "
        r"(triton at 4|cuda at 64) elements; proven on stand-in GPU, 20\d\d-\d\d-\d\d\)$",
        tuned["after"]["explained"],
    )
    assert tuned["by size"] == ["triton", "triton", "cuda", "cuda"]
    assert tuned["later"] == ["triton", "cuda"]
    rows = [line for line in tuned["said"] if " ms" in line]
    assert len(rows) == 6
    assert re.match(r"vandermonde float32 N=4, cuda: \d+\.\d+ ms, with gradients \d+\.\d+ ms$", rows[0])
    assert [line for line in tuned["again"] if " ms" in line] == rows  # nothing is measured twice


def test_only_what_is_proven_is_measured(found: dict[str, Any]) -> None:
    assert found["tuned"]["wrong"] == ["torch", "triton"]
    assert found["tuned"]["without a table"] == 0


@pytest.mark.thorough
def test_the_command_outlives_kernels_that_kill_and_hang(tmp_path: Path) -> None:
    ran = outcome("command", tmp_path)
    assert ran["found"] == {
        "cauchy-cuda-float32": True,
        "cauchy-cuda-float64": True,
        "vandermonde-cuda-float32": "ended its process: Killed",
        "vandermonde-cuda-float64": "said nothing for 5 s",
    }
    assert ran["after"]["chosen"] == "triton"
    assert "ended its process: Killed" in ran["after"]["warnings"][0]


def test_every_cuda_kernel_is_launched_by_a_proof_and_they_are_small(found: dict[str, Any]) -> None:
    ran = found["every_kernel"]
    assert {said for passed, said in ran["verdicts"].values()} == {""}
    ours = {name: count for name, count in ran["launches"].items() if not name.startswith("torch ")}
    sources = (ROOT / "csrc").glob("*/*.cu")
    kernels = {k for s in sources for k in re.findall(r"^KERNEL\((\w+),", s.read_text(), re.MULTILINE)}
    kinds = re.compile(r"_(f32|f64|tf32|tf32x3|bf16)$")
    assert {kinds.sub("", k) for k in kernels} <= {kinds.sub("", k) for k in ours}
    assert sum(ours.values()) < 1200
    assert ran["elements"] < 3e6
