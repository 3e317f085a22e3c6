"""One command for a GPU machine: build, tests, sanitizer, benchmarks; interrupted, it goes on where it was."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.harness.machine import ROOT, header
from bench.harness.plan import UsageError


@dataclass(frozen=True)
class Stage:
    """A command; `unavailable` says why it cannot run here, `share` is its part of the time."""

    name: str
    arguments: Callable[[Path], Sequence[str]]
    share: float
    unavailable: Callable[[], str | None] = lambda: None
    environment: Mapping[str, str] = field(default_factory=dict)


def _cuda() -> str | None:
    return None if torch.cuda.is_available() else "there is no CUDA device here"


def _sanitizer() -> str | None:
    return _cuda() or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed")


def _pytest() -> str | None:
    return _cuda() or (None if importlib.util.find_spec("pytest") else "pytest is not installed")


def _toolkit() -> str | None:
    return _cuda() or (None if _nvcc_version() else "nvcc is not installed; build the CUDA library elsewhere")


def _nvcc_version() -> str | None:
    """The CUDA version of the nvcc in PATH, such as 13.0."""
    if shutil.which("nvcc") is None:
        return None
    found = re.search(r"release (\d+\.\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    return found and found[1]


def _build(out: Path) -> Sequence[str]:
    return (
        "env",
        f"SEQUENCE_KERNELS_CUDA={_nvcc_version()}",
        sys.executable,
        "setup.py",
        "build_ext",
        "--inplace",
    )


_TESTS = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
_SANITIZE = (
    "for tool in memcheck racecheck; do "
    'compute-sanitizer --tool $tool --error-exitcode 1 "$@" tests/ops/test_cuda_kernels.py || exit 1; done'
)

STAGES = (
    Stage("build", _build, 0.2, _toolkit),
    Stage("tests", lambda out: (*_TESTS, "-m", "gpu", "tests"), 0.3, _pytest),
    Stage(
        "sanitizer",
        lambda out: ("sh", "-c", _SANITIZE, "sh", *_TESTS, "-m", "gpu"),
        0.2,
        _sanitizer,
        {
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"
        },  # else an access beyond a tensor stays inside torch's own block
    ),
    Stage(
        "bench",
        lambda out: (
            *(sys.executable, "-m", "bench", "run", "--device", "cuda", "--resume"),
            *("--out", str(out / "bench.jsonl")),
        ),
        0.3,
        _cuda,
    ),
)


def command(options: argparse.Namespace) -> int:
    """`python -m bench gpu`: exit status 0 if every stage passed or was skipped with a reason."""
    names = {stage.name for stage in STAGES}
    for name in options.stage:
        if name not in names:
            raise UsageError(f"--stage {name!r} does not exist; expected one of: {', '.join(sorted(names))}")
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (options.out / "machine.json").write_text(json.dumps(header(device, "gpu"), indent=1) + "\n")
    chosen = [stage for stage in STAGES if not options.stage or stage.name in options.stage]
    done = run(chosen, options.out, options.minutes * 60)
    return 0 if all(stage["status"] in ("passed", "skipped") for stage in done.values()) else 1


def run(
    stages: Sequence[Stage], out: Path, seconds: float, now: Callable[[], float] = time.monotonic
) -> dict[str, dict[str, object]]:
    """Run the stages that have not passed yet; `out/stages.json` says what happened, `out/<stage>.log` what it printed.

    A stage may use its share of the time and what earlier stages left of theirs.
    """
    out.mkdir(parents=True, exist_ok=True)
    record = out / "stages.json"
    done: dict[str, dict[str, object]] = json.loads(record.read_text()) if record.exists() else {}
    end, shares = now() + seconds, sum(stage.share for stage in stages)
    for stage in stages:
        limit = (end - now()) * stage.share / shares
        shares -= stage.share
        if done.get(stage.name, {}).get("status") == "passed":
            print(f"{stage.name}: passed before")
            continue
        reason = stage.unavailable()
        started = now()
        status = {"status": "skipped", "reason": reason} if reason else _run(stage, out, limit)
        done[stage.name] = {**status, "seconds": round(now() - started, 1)}
        record.write_text(json.dumps(done, indent=1) + "\n")
        print(f"{stage.name}: {', '.join(str(value) for value in done[stage.name].values())} s", flush=True)
    return done


def _run(stage: Stage, out: Path, limit: float) -> dict[str, object]:
    with (out / f"{stage.name}.log").open("w") as log:
        try:
            code = subprocess.run(
                stage.arguments(out),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **stage.environment},
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"status": "out of time", "reason": f"more than {limit:.0f} s; run it again to go on"}
    return {"status": "passed"} if code == 0 else {"status": "failed", "reason": f"exit status {code}"}
