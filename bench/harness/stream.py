"""``python -m bench stream``: a step of the streaming-audio model by the C library, beside the stepper's program.

One stream, one thread, by turns in one process, so that whatever else runs disturbs both alike; medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import sequence_kernels
from sequence_kernels import SequenceModel, Stepper
from sequence_kernels import stream as c_library

STEPS, TURNS = 100, 31


def command(options: argparse.Namespace) -> int:
    """Print the ratio, the time to open a file, and the size of the library; 1 where a promise is not kept."""
    layer = {"_name_": "s4d", "d_state": 32}
    backbone = SequenceModel(32, n_layers=3, layer=layer, residual="R", norm="layer")
    model = nn.Sequential(nn.Linear(1, 32), backbone, nn.Linear(32, 1)).eval()  # examples/streaming_audio.py
    ratio, opening = measured(sequence_kernels.stepper(model))
    size = c_library.library().stat().st_size
    print(f"a step by the C library / by the stepper's program, B = 1: {ratio:.2f} (promised: at most 1)")
    print(f"opening the file: {1000 * opening:.2f} ms (promised: less than 10)")
    print(f"the library: {size} bytes (promised: less than 300000)")
    return int(ratio > 1 or opening >= 0.010 or size >= 300_000)


def measured(stepper: Stepper) -> tuple[float, float]:
    """The median ratio of steps of one number, C over Python, and the median of the seconds of opening."""
    from tests.stream.library import Model

    program, state = stepper._program, stepper._flat
    assert program is not None
    assert state is not None
    x, threads = torch.randn(STEPS, 1), torch.get_num_threads()
    ratios, opening = [], []
    with tempfile.TemporaryDirectory() as folder:
        stepper.save(path := Path(folder) / "model.skp")
        served = Model(path)
        torch.set_num_threads(1)
        for turn in range(TURNS):
            times = {}
            for ours in (turn % 2 == 0, turn % 2 == 1):
                start = time.perf_counter()
                if ours:
                    served.block(x)
                else:
                    for row in x.unsqueeze(1):
                        program.run(state, row)
                times[ours] = time.perf_counter() - start
            ratios.append(times[True] / times[False])
            start = time.perf_counter()
            Model(path)
            opening.append(time.perf_counter() - start)
        torch.set_num_threads(threads)
    return statistics.median(ratios), statistics.median(opening)
