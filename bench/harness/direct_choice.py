"""From which length on chunks are faster than the direct convolution: `python -m bench.harness.direct_choice FILE`.

For each model and size how many times longer chunks take, those of the rule, from parameters to outputs, forward and
with the gradients of all parameters and of the input. Both run by turns in one thread, whose own time counts, and the
ratio is the median of those of the rounds, so that other programs hardly matter. `tests/ssm/test_convolve.py` holds the
rule to the file that is recorded.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.machine import describe
from sequence_kernels import S4, S4D, ops
from sequence_kernels.ssm import choose_convolution, chunk_matrices

BATCHES, LENGTHS = (1, 8), (64, 128, 256, 512)
HEADS, ROUNDS = 32, 25


def spent(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """How many times longer theirs takes."""
    found = []
    for i in range(ROUNDS + 2):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        times = spent(first), spent(second)
        found.append(times[1] / times[0] if i % 2 else times[0] / times[1])
    return round(statistics.median(found[2:]), 3)


def ratios(
    direct: Callable[[], Tensor], chunked: Callable[[], Tensor], inputs: list[Tensor]
) -> dict[str, float]:
    with torch.no_grad():
        forward = ratio(direct, chunked)
    weight = torch.randn_like(direct().detach())

    def both(run: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(run(), inputs, weight)

    return {"forward": forward, "both": ratio(both(direct), both(chunked))}


def measure() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for size in (16, 64, 128):
        for dense, layer in ((False, S4D(HEADS, size)), (True, S4(HEADS, size))):
            for batch in BATCHES:
                for length in LENGTHS:
                    u = torch.randn(batch, HEADS, length, requires_grad=True)
                    # the rule for chunks is that with a state
                    rule = {"dense": dense, "backend": "cpu", "state": True}
                    chunk = choose_convolution(batch, length, size, **rule).chunk

                    def direct(layer: S4 = layer, u: Tensor = u) -> Tensor:
                        system = layer.system()
                        return ops.ssm_direct(u, *system.discrete(), system.c)

                    def chunked(layer: S4 = layer, u: Tensor = u, chunk: int = chunk) -> Tensor:
                        return ops.ssm_conv(u, *chunk_matrices(layer.system(), chunk, tail=False))[0]

                    about = {"dense": dense, "size": size, "batch": batch, "length": length, "heads": HEADS}
                    found = ratios(direct, chunked, [u, *layer.kernel.parameters()])
                    rows.append({**about, "chunk": chunk, **found})
                    print(rows[-1], file=sys.stderr)
    return rows


if __name__ == "__main__":
    machine = describe(torch.device("cpu"))
    lines = ",\n".join(json.dumps(row) for row in measure())
    Path(sys.argv[1]).write_text(f'{{"machine": {json.dumps(machine)},\n"rows": [\n{lines}\n]}}\n')
