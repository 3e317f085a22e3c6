"""``python -m bench ranks``: a sequence split over processes of this machine against one process with all of it.

Rank 0 takes a step of training on the whole sequence while the others wait, then all take it on their parts; one
thread a process, both orders in turn, medians of the pairs' ratios. Then each once more for its peak memory: of the
process with the whole sequence, and the largest of the processes with a part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from bench.harness.memory import peak
from bench.harness.plan import UsageError
from sequence_kernels import SequenceModel
from sequence_kernels.distributed import context_parallel, sum_gradients

WIDTH, LAYERS = 64, 4


def command(options: argparse.Namespace) -> int:
    """Measure every layer asked for; print a row each."""
    if options.ranks < 2:
        raise UsageError(f"--ranks {options.ranks}: a sequence is split over 2 or more processes")
    layers = options.layer or ["s4d", "s4", "mamba"]
    print(
        f"forward and backward of {LAYERS} layers, width {WIDTH}, L = {options.length}, one thread a process"
    )
    print(
        f"| layer | one process, s | {options.ranks} processes, s | ratio (spread) | one process, MiB | a rank, MiB |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for layer in layers:
        pairs, peaks = _measured(layer, options.ranks, options.length, options.pairs)
        ratios = sorted(one / split for one, split in pairs)
        one, split = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        memory = " | ".join("-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks)
        print(f"| {layer} | {one:.2f} | {split:.2f} | {ratio} | {memory} |", flush=True)
    return 0


def _measured(
    layer: str, ranks: int, length: int, pairs: int
) -> tuple[list[tuple[float, float]], list[int | None]]:
    """Seconds of the pairs, and the peaks in bytes, of one process and of a rank."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (ranks, folder, layer, length, pairs)
        multiprocessing.spawn(_rank, arguments, nprocs=ranks)  # type: ignore[no-untyped-call]
        found = json.loads((Path(folder) / "found.json").read_text())
        return [(one, split) for one, split in found["pairs"]], found["peaks"]


def _rank(rank: int, ranks: int, folder: str, layer: str, length: int, pairs: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timeout=timedelta(hours=1), rank=rank, world_size=ranks)
    whole, split = _model(layer), _model(layer)
    group = dist.group.WORLD
    context_parallel(split, group)
    x = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(0))
    part = x.tensor_split(ranks, 1)[rank].clone()

    def alone() -> None:
        if rank == 0:
            whole(x)[0].square().sum().backward()

    def together() -> None:
        split(part)[0].square().sum().backward()
        sum_gradients(split, group)

    taken = []
    for number in range(-1, pairs):
        order: list[Callable[[], None]] = [alone, together] if number % 2 else [together, alone]
        seconds = {function: _timed(function) for function in order}
        if number >= 0:
            taken.append((seconds[alone], seconds[together]))
    peaks: list[list[int | None]] = [[] for _ in range(ranks)]
    own = [peak(alone, x.device), peak(together, x.device)]
    dist.all_gather_object(peaks, own)
    if rank == 0:
        split_peaks = [one for _, one in peaks if one is not None]
        both = [own[0], max(split_peaks, default=None)]
        (Path(folder) / "found.json").write_text(json.dumps({"pairs": taken, "peaks": both}))
    dist.barrier()
    dist.destroy_process_group()


def _timed(function: Callable[[], None]) -> float:
    dist.barrier()
    started = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - started


def _model(layer: str) -> nn.Module:
    torch.manual_seed(0)
    blocks = [{"_name_": layer}] if layer == "mamba" else [{"_name_": layer}, {"_name_": "ff"}]
    return SequenceModel(WIDTH, n_layers=LAYERS, layer=blocks)
