"""The parent of the measuring processes: one for each allocator setting, records appended as they come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from bench.harness.declare import DEFAULT, KEEPS
from bench.harness.machine import ROOT
from bench.harness.plan import Job
from bench.harness.progress import Progress
from bench.harness.results import load

# glibc reads these when a process starts. With no mmap and no trimming, freed pages stay with the process, so that
# large outputs do not pay page faults at every call.
_KEEPING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def environment(
    allocator: str, base: Mapping[str, str] = os.environ, threads: int | None = None
) -> dict[str, str]:
    """The environment of a process that measures with this allocator setting (and so many threads)."""
    settings = {DEFAULT: {}, KEEPS: _KEEPING}
    if allocator not in settings:
        raise ValueError(f"allocator is {allocator!r}, expected one of {tuple(settings)}")
    clean = {name: value for name, value in base.items() if not name.startswith("MALLOC_")}
    counted = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**clean, **settings[allocator], **counted}


def run(
    jobs: Sequence[Job], out: Path, header: dict[str, Any], progress: Progress, resume: bool = False
) -> None:
    """Measure the jobs and append records to `out`; what peers print goes to a .log beside it.

    Jobs that `out` already holds, quietly measured, are left out when resuming. A process that dies costs its
    current job, which is recorded as skipped. KeyboardInterrupt passes through after the measuring process has ended;
    everything measured until then is in `out`.
    """
    done = _done(out) if resume else set()
    left = [job for job in jobs if job.key not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    progress.begin("measuring this machine's ceilings")
    mode = "a" if resume else "w"
    with out.open(mode) as file, out.with_suffix(".log").open(mode) as log:
        if not file.tell():
            _write(file, header)
        for allocator, group in groupby(left, key=lambda job: job.allocator):
            env, waiting = environment(allocator, threads=header["threads"]), list(group)
            while waiting:
                waiting = _spawn(waiting, env, file, log, progress)
    progress.close()


def _spawn(
    jobs: list[Job], env: dict[str, str], file: IO[str], log: IO[str], progress: Progress
) -> list[Job]:
    """Run the jobs in one process; returns those left when it died early."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.harness.worker"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches this process alone
    )
    assert process.stdin
    assert process.stdout
    finished = 0
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([asdict(job) for job in jobs]))
            process.stdin.close()
        for line in process.stdout:
            record = json.loads(line)
            if record["kind"] == "start":
                progress.step(
                    f"{record['job'][0]} {record['job'][1]} {record['job'][2]} ({jobs[0].allocator} allocator)"
                )
                continue
            finished += record["kind"] == "done"
            _write(file, record)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if finished == len(jobs):
        return []
    failed = jobs[finished]
    reason = f"the measuring process ended early (exit status {code}; its messages are in the .log file)"
    about = {key: asdict(failed)[key] for key in Job.KEY}
    _write(file, {"kind": "skip", **about, "peer": None, "reason": reason})
    return jobs[finished + 1 :]


def _write(file: IO[str], record: dict[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _done(out: Path) -> set[tuple[str, ...]]:
    if not out.exists():
        return set()
    records = list(map(json.loads, out.read_text().splitlines()))
    done = {tuple(record["job"]) for record in records if record["kind"] == "done"}
    found = load(out)
    noisy = {tuple(pair[name] for name in Job.KEY) for pair in found.pairs if not found.quiet(pair)}
    return done - noisy
