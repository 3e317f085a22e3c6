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
from bench.harness.worker import missing


def main() -> None:
    """The job is the last argument, as JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.argv[-1]))
    bench = benches()[job.op]
    reason = missing(bench.entry)
    if reason is None:
        torch.manual_seed(0)
        device = torch.device(job.device)
        inputs = bench.inputs(bench.every_shape()[job.shape], device)
        torch.set_grad_enabled(job.mode == BOTH)
        call = prepare(bench.run, bench.setup, bench.wrt, inputs, job.mode).call
        call()
        sampler = Sampler(call, clock_for(device))
    print(json.dumps({"reason": reason}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": sampler()}), file=answers, flush=True)
