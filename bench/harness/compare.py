"""Our own speed before and after: two commits, built and timed in turn, or two results files."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.harness.clock import interleave
from bench.harness.declare import DEFAULT
from bench.harness.machine import ROOT
from bench.harness.plan import EFFORTS, Job, benches, plan
from bench.harness.progress import Progress
from bench.harness.results import Run, load
from bench.harness.run import environment
from bench.harness.stats import ratio
from bench.harness.tables import milliseconds, significant, spread, table


class RefusedError(RuntimeError):
    """Nothing is compared: a commit does not build, or its tests fail."""


def command(options: argparse.Namespace) -> int:
    """`python -m bench compare A B`."""
    files = [Path(name) for name in (options.a, options.b)]
    if all(file.is_file() for file in files):
        print(of_files(*map(load, files)))
        return 0
    jobs = plan(
        benches(),
        options.effort,
        options.device,
        options.op,
        options.shape,
        options.backend,
        allocators=(DEFAULT,),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trees = [
            stack.enter_context(worktree(name, Path(folder) / side))
            for name, side in zip((options.a, options.b), "ab", strict=True)
        ]
        for name, tree in zip((options.a, options.b), trees, strict=True):
            build(name, tree)
            require_green(name, tree, options.op)
        print(of_trees(jobs, *trees))
    return 0


def of_files(old: Run, new: Run) -> str:
    """Both runs' ratios to the peers they share: times of different days are not comparable."""
    rows = []
    for pair in new.pairs:
        wanted = {key: pair[key] for key in ("op", "shape", "mode", "allocator", "device", "peer")}
        before = old.find(**wanted) if pair["peer"] else None
        if before is None:
            continue
        was, now = before["ratio"], pair["ratio"]
        change = now["median"] / was["median"]
        apart = now["q20"] > was["q80"] or now["q80"] < was["q20"]
        verdict = ("faster" if change > 1 else "SLOWER") if apart else "within the spread"
        rows.append(
            [
                *(pair[key] for key in ("op", "shape", "mode", "allocator", "peer")),
                *(significant(value) for value in (was["median"], now["median"], change)),
                verdict,
            ]
        )
    head = ["operation", "shape", "mode", "allocator", "against", "was", "is", "is / was", "verdict"]
    return table(head, rows, left=5) if rows else "the two files share no measurement"


def of_trees(jobs: Sequence[Job], old: Path, new: Path) -> str:
    """Time both trees' libraries in turn, a round here and a round there."""
    rows, progress = [], Progress(len(jobs))
    for job in jobs:
        progress.step(f"{job.op} {job.shape} {job.mode}")
        about = [job.op, job.shape, job.mode]
        with served(job, old) as a, served(job, new) as b:
            reason = a.reason or b.reason
            if reason:
                rows.append([*about, "", "", "", "", reason])
                continue
            effort = EFFORTS[job.effort]
            samples = interleave({"old": a, "new": b}, effort.seconds * 4, effort.least)
        faster = ratio(samples["new"], samples["old"])
        verdict = "faster" if faster.q20 > 1 else "SLOWER" if faster.q80 < 1 else "within the spread"
        times = [milliseconds(sorted(samples[side])[len(samples[side]) // 2]) for side in ("old", "new")]
        rows.append([*about, *times, significant(faster.median), spread(faster.as_dict()), verdict])
    progress.close()
    head = ["operation", "shape", "mode", "was ms", "is ms", "times faster", "20–80 %", "verdict"]
    return table(head, rows, left=3)


class Remote:
    """A sampler in another process: one line asks for a round, one line answers with its seconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        answer = self._read()
        self.reason: str | None = answer["reason"]

    def __call__(self) -> float:
        assert self._process.stdin
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"reason": "the measuring process died", "seconds": float("nan")}


@contextmanager
def served(job: Job, tree: Path) -> Iterator[Remote]:
    """A process that holds the job's call on the library in `tree`, and this checkout's benchmarks."""
    start = "import sys; sys.path[:1] = sys.argv[1:3]; from bench.harness.serve import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", start, str(tree), str(ROOT), json.dumps(asdict(job))],
        cwd=tree,
        env=environment(job.allocator),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield Remote(process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A throwaway worktree of the commit."""
    done = _git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    if done.returncode:
        raise RefusedError(f"{commit!r} is neither a results file nor a commit: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def build(name: str, tree: Path) -> None:
    """Build the tree's compiled library in place."""
    if (tree / "setup.py").exists():
        _require(f"{name} does not build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)


def require_green(name: str, tree: Path, ops: Sequence[str]) -> None:
    """Run the tree's tests (those of the named operations where they have a folder); refuse if any fails."""
    folders = [tree / "tests" / "ops" / op for op in ops]
    chosen = [str(folder) for folder in folders if folder.is_dir()] or [str(tree / "tests" / "ops")]
    start = "import sys; sys.path[:1] = sys.argv[1:2]; import pytest; sys.exit(pytest.main(sys.argv[2:]))"
    arguments = [str(tree), "-q", "-x", "-p", "no:cacheprovider", *chosen]
    _require(
        f"the tests of {name} are red, so its speed is not compared",
        [sys.executable, "-c", start, *arguments],
        tree,
    )


def _require(failure: str, arguments: Sequence[str], tree: Path) -> None:
    done = subprocess.run(arguments, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(f"{failure}:\n{(done.stdout + done.stderr)[-2000:]}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
