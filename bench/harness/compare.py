"""Our own speed before and after: two commits, built and timed in turn, or two results files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness.clock import interleave
from bench.harness.declare import DEFAULT
from bench.harness.load import foreign_share
from bench.harness.machine import ROOT
from bench.harness.plan import EFFORTS, Job, benches, plan
from bench.harness.progress import Progress
from bench.harness.results import MUCH, Record, Run, load
from bench.harness.run import environment
from bench.harness.stats import FASTER, NO_DIFFERENCE, SLOWER, quantile, ratio, verdict
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
            print(f"building {name}", file=sys.stderr, flush=True)
            build(name, tree)
            print(f"running the tests of {name}", file=sys.stderr, flush=True)
            require_green(name, tree, options.op)
        print(of_trees(jobs, *trees))
    return 0


def of_files(old: Run, new: Run) -> str:
    """Both runs' ratios to the peers they share: times of different days are not comparable."""
    rows = []
    for was, now in shared(old, new):
        about = [now[key] for key in (*PAIR, "peer")]
        if not (old.quiet(was) and new.quiet(now)):
            sides = [
                name for name, run, pair in (("old", old, was), ("new", new, now)) if not run.quiet(pair)
            ]
            rows.append(
                [*about, "", "", "", f"disturbed in the {' and the '.join(sides)} file: not compared"]
            )
            continue
        was, now = was["ratio"], now["ratio"]
        change = now["median"] / was["median"]
        apart = now["q20"] > was["q80"] or now["q80"] < was["q20"]
        said = (FASTER if change > 1 else SLOWER) if apart else NO_DIFFERENCE
        rows.append([*about, *map(significant, (was["median"], now["median"], change)), said])
    head = [
        "operation",
        "shape",
        "mode",
        "allocator",
        "device",
        "against",
        "was",
        "is",
        "is / was",
        "verdict",
    ]
    return table(head, rows, left=6) if rows else "the two files share no measurement"


PAIR = ("op", "shape", "mode", "allocator", "device")


def shared(old: Run, new: Run) -> list[tuple[Record, Record]]:
    """The measurements against peers that both runs hold, in an order that does not depend on which is which."""

    def by_key(run: Run) -> dict[tuple[str, ...], Record]:
        return {tuple(pair[key] for key in (*PAIR, "peer")): pair for pair in run.pairs if pair["peer"]}

    ours, theirs = by_key(old), by_key(new)
    return [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]


LAUNCHES = 5  # of both processes, for each job
ROUNDS = 11  # in each launch, at least


def of_trees(jobs: Sequence[Job], old: Path, new: Path) -> str:
    """Time both trees' libraries in turn, a round here and a round there, in several launches of both."""
    rows, progress = [], Progress(len(jobs))
    for job in jobs:
        progress.step(f"{job.op} {job.shape} {job.mode}")
        rows.append([job.op, job.shape, job.mode, *_job_of_trees(job, old, new)])
    progress.close()
    head = ["operation", "shape", "mode", "was ms", "is ms", "times faster", "20–80 %", "verdict"]
    return table(head, rows, left=3)


def _job_of_trees(job: Job, old: Path, new: Path) -> list[str]:
    """A row: times, how many times faster the new one is, the spread, and the verdict or why there is none."""
    samples: dict[str, list[float]] = {"old": [], "new": []}
    launches, noisy = [], False
    for _ in range(LAUNCHES):
        with served(job, old) as a, served(job, new) as b:
            if reason := a.reason or b.reason:
                return ["", "", "", "", reason]
            effort, sides = EFFORTS[job.effort], {"old": a, "new": b}
            work = partial(interleave, sides, effort.seconds, max(effort.least, ROUNDS))
            found, foreign = foreign_share(work, [a.process, b.process])
        noisy = noisy or foreign > MUCH
        launches.append(ratio(found["new"], found["old"]))
        for side, seconds in found.items():
            samples[side] += seconds
    faster = ratio(samples["new"], samples["old"])
    times = [milliseconds(quantile(samples[side], 0.5)) for side in ("old", "new")]
    said = verdict(launches) + (", disturbed" if noisy else "")
    return [*times, significant(faster.median), spread(faster.as_dict()), said]


class Remote:
    """A sampler in another process: one line asks for a round, one line answers with its seconds."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process, self.process = process, process.pid
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
    process = subprocess.Popen(
        arguments,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that compilers end with it
    )
    try:
        said, _ = process.communicate()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        raise RefusedError(f"{failure}:\n{said[-2000:]}")


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
