"""The measuring process: takes jobs as JSON on standard input, prints one JSON record a line."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import sequence_kernels
from bench.harness import ceilings, memory
from bench.harness.calls import Prepared, difference, prepare
from bench.harness.clock import Call, Clock, CudaClock, Sampler, as_graph, clock_for, interleave
from bench.harness.declare import AUTOMATIC, BOTH, DEFAULT, FORWARD, Bench, Inputs, Peer
from bench.harness.load import foreign_share
from bench.harness.plan import EFFORTS, Job, benches
from bench.harness.stats import Summary, ratio
from sequence_kernels.ops import dispatch

Emit = Callable[[dict[str, Any]], None]

TORCH_BACKEND = "our torch backend"
QUIET = 0.05  # share of the cores that other programs may use, besides those we have no thread for
FEWEST = 3  # rounds of a pair whose rounds take long
GRAPHED_BELOW = 2e-4  # seconds; shorter CUDA calls are timed as graph replays


def main() -> None:
    """Measure the jobs on standard input; what libraries print goes to standard error."""
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(record: dict[str, Any]) -> None:
        print(json.dumps(record), file=records, flush=True)

    jobs = [Job(**{**job, "against": tuple(job["against"])}) for job in json.load(sys.stdin)]
    if jobs:
        device = torch.device(jobs[0].device)
        emit({"kind": "ceilings", "allocator": jobs[0].allocator, "rates": ceilings.measure(device)})
    known = benches()
    for job in jobs:
        emit({"kind": "start", "job": job.key})
        measure(job, known[job.op], emit)
        emit({"kind": "done", "job": job.key})


def measure(job: Job, bench: Bench, emit: Emit) -> None:
    """Emit a "pair" or a "skip" record for each peer of the job (for none, one "pair" of our time alone)."""
    about = {key: asdict(job)[key] for key in Job.KEY}
    shape = bench.every_shape()[job.shape]
    reason = missing(bench.entry)
    if reason:
        emit({"kind": "skip", **about, "peer": None, "reason": reason})
        return
    torch.manual_seed(0)
    device = torch.device(job.device)
    inputs = bench.inputs(shape, device)
    clock = clock_for(device)
    with torch.set_grad_enabled(job.mode == BOTH):
        try:
            backend = serving(bench.entry, inputs, job.backend)
            ours = prepare(bench, bench.wrt, inputs, job.mode, using(job.backend))
        except Exception as error:
            emit({"kind": "skip", **about, "peer": None, "reason": said(error)})
            return
        about.update(ours=backend, dims=dict(shape), cost=asdict(bench.cost(shape, job.mode)))
        timed = 0
        for peer in peers_of(bench, backend):
            if job.against and peer.name not in job.against:
                continue
            slow = job.effort == "quick" and not peer.quick
            reason = "left out of quick runs: slow, or slow to compile" if slow else None
            reason = reason or peer.unavailable(job.device) or peer.serves(shape)
            if reason:
                emit({"kind": "skip", **about, "peer": peer.name, "reason": reason})
                continue
            try:
                emit({"kind": "pair", **about, **_pair(job, bench, peer, ours, inputs, clock)})
                timed += 1
            except Exception as error:
                emit({"kind": "skip", **about, "peer": peer.name, "reason": said(error)})
        if not timed:
            emit({"kind": "pair", **about, **_alone(job, ours, clock)})


def _pair(job: Job, bench: Bench, peer: Peer, ours: Prepared, inputs: Inputs, clock: Clock) -> dict[str, Any]:
    """Check the answers, then time both in turn."""
    wrt = bench.wrt if peer.wrt is None else peer.wrt
    around = using("torch") if peer.name == TORCH_BACKEND else nullcontext
    theirs = prepare(peer, wrt, inputs, job.mode, around)
    gap = difference(ours, theirs)
    if not gap <= peer.tolerance:
        raise ArithmeticError(
            f"gives another answer: relative difference {gap:.1e}, allowed {peer.tolerance:.0e}"
        )
    samplers = {"ours": _sampler(ours, job, clock), "theirs": _sampler(theirs, job, clock)}
    samples, foreign = _rounds(samplers, job)
    return {
        "peer": peer.name,
        "difference": gap,
        "ours_s": Summary.of(samples["ours"]).as_dict(),
        "peer_s": Summary.of(samples["theirs"]).as_dict(),
        "ratio": ratio(samples["ours"], samples["theirs"]).as_dict(),
        "ours_bytes": _peak(ours, job),
        "peer_bytes": _peak(theirs, job),
        "foreign": foreign,
    }


def _alone(job: Job, ours: Prepared, clock: Clock) -> dict[str, Any]:
    samples, foreign = _rounds({"ours": _sampler(ours, job, clock)}, job)
    summary = Summary.of(samples["ours"]).as_dict()
    return {"peer": None, "ours_s": summary, "ours_bytes": _peak(ours, job), "foreign": foreign}


def missing(entry: str) -> str | None:
    """None if `sequence_kernels.<entry>` exists, else a sentence."""
    try:
        functools.reduce(getattr, entry.split("."), sequence_kernels)
    except AttributeError:
        return f"sequence_kernels.{entry} does not exist yet"
    return None


def serving(entry: str, inputs: Inputs, backend: str | None) -> str:
    """The name of the backend that serves our side."""
    op = entry.removeprefix("ops.")
    if op not in dispatch.operations():
        return backend or AUTOMATIC
    tensor = next(value for value in inputs.values() if isinstance(value, torch.Tensor))
    return dispatch.choose(op, backend, tensor)


def peers_of(bench: Bench, backend: str) -> tuple[Peer, ...]:
    """The declared peers, and our own torch backend where something faster serves."""
    if backend == "torch":
        return bench.peers
    return (
        *bench.peers,
        Peer(TORCH_BACKEND, bench.run, bench.setup, bench.restart, quick=backend != AUTOMATIC),
    )


def using(backend: str | None) -> Callable[[], Any]:
    return partial(dispatch.use_backend, backend) if backend else nullcontext


def _sampler(side: Prepared, job: Job, clock: Clock) -> Sampler:
    call: Call = side.call
    if isinstance(clock, CudaClock) and job.mode == FORWARD:
        with side.around():
            call()
            if clock.block(call, 1) < GRAPHED_BELOW:
                call = as_graph(call)
    return Sampler(call, clock, side.around)


def _peak(side: Prepared, job: Job) -> int | None:
    """Peak memory; only under the default allocator, the other one keeps what it once had."""
    if job.allocator != DEFAULT:
        return None
    with side.around():
        return memory.peak(side.call, torch.device(job.device))


def _rounds(samplers: Mapping[str, Sampler], job: Job) -> tuple[dict[str, list[float]], float | None]:
    """Interleaved rounds, and the share of the cores that other programs used meanwhile.

    While that is much and the job has patience left, wait for a quieter moment and measure again; the quietest
    attempt counts, whatever its times.
    """
    effort, end = EFFORTS[job.effort], time.monotonic() + job.patience
    allowed = QUIET + 1 - torch.get_num_threads() / (os.cpu_count() or 1)
    measured = partial(interleave, samplers, effort.seconds, effort.least, fewest=FEWEST)
    attempts = []
    while True:
        while time.monotonic() < end and foreign_share(lambda: time.sleep(0.25))[1] > allowed:
            pass
        attempts.append(foreign_share(measured))
        if attempts[-1][1] <= allowed or time.monotonic() >= end:
            samples, foreign = min(attempts, key=lambda attempt: attempt[1])
            return samples, None if math.isnan(foreign) else round(foreign, 3)


def said(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"


if __name__ == "__main__":
    main()
