"""One command for a GPU machine: proofs, tests, sanitizer, choices, benchmarks, profile; started again, it goes on."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.harness.machine import ROOT, header
from bench.harness.plan import UsageError
from bench.harness.results import Run, load
from bench.harness.tables import share_of_floor
from sequence_kernels import native

#: What all stages print, one after another.
LOG = "log.txt"

#: Seconds that a stage has after its time to write its summary.
_LAST_WORDS = 5.0


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


def _cuda_library() -> str | None:
    """The first stage has nothing to do where the library was built before, which saves minutes of GPU time."""
    if native.is_installed("cuda"):
        return "the CUDA library was built before"
    return _cuda() or (None if _nvcc_version() else "nvcc is not installed; build the CUDA library elsewhere")


def _nvcc_version() -> str | None:
    """The CUDA version of the nvcc in PATH, such as 13.0."""
    if shutil.which("nvcc") is None:
        return None
    found = re.search(r"release (\d+\.\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    return found and found[1]


def _nsight() -> str | None:
    return _cuda() or (None if shutil.which("ncu") else "Nsight Compute (ncu) is not installed")


def _build(out: Path) -> Sequence[str]:
    version = f"SEQUENCE_KERNELS_CUDA={_nvcc_version()}"
    return ("env", version, sys.executable, "setup.py", "build_ext", "--inplace")


def _tune(out: Path) -> Sequence[str]:
    return (sys.executable, "-m", "sequence_kernels", "tune", "--out", str(out / "choices.json"))


def _bench(out: Path) -> Sequence[str]:
    run = (sys.executable, "-m", "bench", "run", "--device", "cuda", "--resume")
    return (*run, "--out", str(out / "bench.jsonl"))


def _profile(out: Path) -> Sequence[str]:
    """Our kernels in the calls that reach the least of what the GPU can do, by Nsight Compute."""
    run = (sys.executable, "-m", "bench", "run", "--device", "cuda", "--backend", "cuda")
    found = slowest(load(out / "bench.jsonl")) if (out / "bench.jsonl").exists() else None
    only = ("--op", found[0], "--shape", found[1]) if found else ("--op", "ssm_conv")
    return (
        *("ncu", "--target-processes", "all", "--launch-count", "12", "--kernel-name", f"regex:{ours()}"),
        *(*run, *only, "--out", str(out / "profiled.jsonl")),
    )


def ours() -> str:
    """A pattern of our CUDA kernels' names, which begin with that of their directory."""
    directories = {path.parent.name for path in (ROOT / "csrc").glob("*/*.cu")}
    return f"^({'|'.join(sorted(directories - {'common'}))}|sum_segments)"


def slowest(done: Run) -> tuple[str, str] | None:
    """The op and the shape of ours that is farthest from the roofline; None if nothing was measured against one."""
    found = [
        (share[0], pair["op"], pair["shape"]) for pair in done.pairs if (share := share_of_floor(done, pair))
    ]
    return min(found)[1:] if found else None


#: A test file that wants a package which this machine lacks costs that file alone.
_PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "-ra", "--tb=short", "-p", "no:cacheprovider", "-m", "gpu"),
    "--continue-on-collection-errors",
)

#: What finds most comes first: each kernel once, then every contract of the ops, then layers and steppers.
_TESTS = (
    "tests/ops/test_cuda_kernels.py",
    "tests/ops/test_contract.py",
    "tests/ops",
    "tests/test_stepper.py",
    "tests",
)

_SANITIZE = (
    "for tool in memcheck racecheck; do "
    'compute-sanitizer --tool $tool --error-exitcode 1 "$@" tests/ops/test_cuda_kernels.py || exit 1; done'
)

STAGES = (
    Stage("build", _build, 0.2, _cuda_library),
    Stage("proofs", lambda out: (sys.executable, "-m", "sequence_kernels", "prove", "--missing"), 0.2, _cuda),
    Stage("tests", lambda out: (*_PYTEST, *_TESTS), 0.3, _pytest),
    Stage(
        "sanitizer",
        lambda out: ("sh", "-c", _SANITIZE, "sh", *_PYTEST),
        0.15,
        _sanitizer,
        {
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"
        },  # else an access beyond a tensor stays inside torch's own block
    ),
    Stage("tune", _tune, 0.15, _cuda),
    Stage("bench", _bench, 0.3, _cuda),
    Stage("profile", _profile, 0.05, _nsight),
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
    """Run the stages that have not passed yet; `out/stages.json` says what happened, `out/log.txt` what they printed.

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
    """Ctrl-C at the end of its time, so that a stage can say how far it came; its children end with it."""
    with (out / LOG).open("a") as log:
        print(f"== {stage.name} ==", file=log, flush=True)
        command, environment = stage.arguments(out), {**os.environ, **stage.environment}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_hears_interrupts,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            return {"status": "out of time", "reason": f"more than {limit:.0f} s; run it again to go on"}
        except KeyboardInterrupt:
            _end(process)
            raise
    return {"status": "passed"} if code == 0 else {"status": "failed", "reason": f"exit status {code}"}


def _hears_interrupts() -> None:
    """What a shell runs in the background ignores them, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_LAST_WORDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
