"""Processes that are the ranks of a gloo group, started once and given many functions to run."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing


def _serve(rank: int, size: int, store: str, calls: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{store}", timeout=timedelta(seconds=60), rank=rank, world_size=size
    )
    while (call := calls.recv()) is not None:
        function, arguments = call
        try:
            calls.send((True, function(*arguments)))
        except Exception:
            calls.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """``run(function, *args)``: what each rank's call gives, in order; AssertionError where one failed."""

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.calls, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, str(folder / "store"), theirs), daemon=True
            )
            process.start()
            self.calls.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for call in self.calls:
            call.send((function, args))
        answers = [call.recv() for call in self.calls]
        failures = [answer for good, answer in answers if not good]
        assert not failures, "\n".join(failures)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for call, process in zip(self.calls, self.processes, strict=True):
            if process.is_alive():
                call.send(None)
        for process in self.processes:
            process.join(20)
