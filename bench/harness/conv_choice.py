"""What ``ssm_conv``'s choice of a convolution and of its chunk rests on: `python -m bench.harness.conv_choice FILE`.

For each model and size the time from parameters to outputs, with chunks of each length and by FFT, forward and with the
gradients of all parameters and of the input; in milliseconds of one thread's own time, the least of several calls, so
that other programs hardly matter. `tests/ops/ssm_conv/test_choice.py` holds the rule to the file that is recorded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.machine import describe
from sequence_kernels import S4, S4D, ops
from sequence_kernels.ssm import chunk_matrices

CHUNKS = (16, 32, 64, 128)
SIZES = ((1, 64), (8, 64), (1, 512), (8, 512), (8, 2048), (1, 16384))  # batch, length
HEADS = 32


def least(call: Callable[[], Any], seconds: float = 0.15) -> float:
    """Milliseconds of this thread's time."""
    call()
    samples: list[float] = []
    while len(samples) < 5 or (sum(samples) < seconds and len(samples) < 50):
        start = time.thread_time()
        call()
        samples.append(time.thread_time() - start)
    return 1e3 * min(samples)


def times(run: Callable[[], Tensor], inputs: list[Tensor]) -> dict[str, float]:
    with torch.no_grad():
        forward = least(run)
    weight = torch.randn_like(run().detach())
    return {"forward": forward, "both": least(lambda: torch.autograd.grad(run(), inputs, weight))}


def measure() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for size in (16, 64, 128):
        for dense, layer in ((False, S4D(HEADS, size)), (True, S4(HEADS, size))):
            parameters = list(layer.kernel.parameters())
            for batch, length in SIZES:
                u = torch.randn(batch, HEADS, length, requires_grad=True)

                def chunked(chunk: int, layer: S4 = layer, u: Tensor = u) -> Tensor:
                    return ops.ssm_conv(u, *chunk_matrices(layer.system(), chunk, tail=False))[0]

                def fft(layer: S4 = layer, u: Tensor = u) -> Tensor:
                    return ops.fft_conv(u, layer.system().kernel(u.shape[-1]))

                about = {"dense": dense, "size": size, "batch": batch, "length": length, "heads": HEADS}
                for chunk in CHUNKS:
                    found = times(lambda chunk=chunk: chunked(chunk), [u, *parameters])
                    rows.append({**about, "conv": "chunked", "chunk": chunk, **found})
                rows.append({**about, "conv": "fft", "chunk": 0, **times(fft, [u, *parameters])})
                print(rows[-5:], file=sys.stderr)
    return rows


if __name__ == "__main__":
    machine = describe(torch.device("cpu"))
    lines = ",\n".join(json.dumps(row) for row in measure())
    Path(sys.argv[1]).write_text(f'{{"machine": {json.dumps(machine)},\n"rows": [\n{lines}\n]}}\n')
