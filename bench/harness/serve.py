"""One side of `compare`: holds a call, and times a round of it whenever a line comes in."""

from __future__ import annotations

import json
import os
import sys

import torch

from bench.harness.calls import prepare
from bench.harness.clock import Sampler, clock_for
from bench.harness.declare import BOTH
from bench.harness.plan import Job, benches
from bench.harness.worker import missing, said, using


def main() -> None:
    """The job is the last argument, as JSON. The first line out says why there is no call, or null."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        sampler = _sampler(Job(**json.loads(sys.argv[-1])))
    except Exception as error:
        print(json.dumps({"reason": said(error)}), file=answers, flush=True)
        return
    print(json.dumps({"reason": None}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": sampler()}), file=answers, flush=True)


def _sampler(job: Job) -> Sampler:
    bench = benches()[job.op]
    reason = missing(bench.entry)
    if reason:
        raise NotImplementedError(reason)
    torch.manual_seed(0)
    device = torch.device(job.device)
    inputs = bench.inputs(bench.every_shape()[job.shape], device)
    torch.set_grad_enabled(job.mode == BOTH)
    around = using(job.backend)
    call = prepare(bench, bench.wrt, inputs, job.mode, around).call
    with around():
        call()
    return Sampler(call, clock_for(device), around)
