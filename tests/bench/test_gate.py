"""The regression gate: each operation that is faster than plain torch stays so, by a wide margin.

Both sides run in turn in this process on one thread, and the best round of each counts, so that a busy machine does
not fail it; the margins are half or less of what is measured on a quiet one.
"""

from __future__ import annotations

import pytest
import torch

from bench.harness.calls import prepare
from bench.harness.clock import CpuClock, Sampler, interleave
from bench.harness.declare import FORWARD
from bench.harness.plan import benches
from bench.harness.worker import serving
from sequence_kernels.ops import use_backend

GATED = {name: bench for name, bench in benches().items() if bench.gate}
TRIES = 3


@pytest.mark.parametrize("op", sorted(GATED))
def test_our_kernel_stays_faster_than_plain_torch(op):
    bench = GATED[op]
    torch.manual_seed(0)
    inputs = bench.inputs(bench.chosen("quick")[0], torch.device("cpu"))
    if serving(bench.entry, inputs, None) == "torch":
        pytest.skip("the compiled kernels are not built here")
    clock, threads = CpuClock(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            ours = prepare(bench, (), inputs, FORWARD)
            plain = prepare(bench, (), inputs, FORWARD, lambda: use_backend("torch"))
            found = []
            for _ in range(TRIES):
                sides = {"ours": Sampler(ours.call, clock), "plain": Sampler(plain.call, clock, plain.around)}
                samples = interleave(sides, seconds=0.3, least=5)
                found.append(min(samples["plain"]) / min(samples["ours"]))
                if found[-1] >= bench.gate:
                    break
    finally:
        torch.set_num_threads(threads)
    assert max(found) >= bench.gate, (
        f"{op} was {max(found):.2f} times faster than plain torch, expected {bench.gate}"
    )
