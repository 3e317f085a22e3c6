"""Timing: blocks of calls on a CPU or CUDA clock, and the interleaving of two or more contenders."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

Call = Callable[[], object]

SHORTEST_BLOCK = (
    2e-3  # seconds a timed block lasts at least, so that the clock's own resolution does not count
)
WARMED_BELOW = (
    0.05  # calls shorter than this get an untimed call first, to refill caches the other side emptied
)


class Clock(Protocol):
    def block(self, call: Call, count: int) -> float:
        """Seconds a call takes, from `count` calls in a row."""
        ...


class CpuClock:
    """Wall-clock time."""

    def block(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count


class CudaClock:
    """CUDA events around each call, with the L2 cache emptied before it.

    Emptying it also gives the host time to queue the call, so that launch overhead shows only where a call
    needs more host time than the emptying takes.
    """

    def __init__(self) -> None:
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._flushed = torch.empty(max(4 * l2, 1 << 28), dtype=torch.int8, device="cuda")

    def block(self, call: Call, count: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            self._flushed.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in events) / count * 1e-3


def clock_for(device: torch.device) -> Clock:
    """The clock for calls on this device."""
    return CudaClock() if device.type == "cuda" else CpuClock()


def as_graph(call: Call) -> Call:
    """The call as a CUDA graph replay, or itself where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


class Sampler:
    """One contender, already warm: each call of the sampler is one round's time per call, in seconds."""

    def __init__(
        self, call: Call, clock: Clock, around: Callable[[], AbstractContextManager[None]] = nullcontext
    ):
        self._call, self._clock, self._around = call, clock, around
        with around():
            first = clock.block(call, 1)
            if first < WARMED_BELOW:
                first = min(clock.block(call, 1) for _ in range(3))
        self._warm = first < WARMED_BELOW
        self._count = max(1, min(1000, int(SHORTEST_BLOCK / max(first, 1e-9))))

    def __call__(self) -> float:
        with self._around():
            if self._warm:
                self._call()
            return self._clock.block(self._call, self._count)


def interleave(
    samplers: Mapping[str, Callable[[], float]],
    seconds: float,
    least: int = 3,
    most: int = 200,
    now: Callable[[], float] = time.perf_counter,
    fewest: int | None = None,
) -> dict[str, list[float]]:
    """Rounds of one sample each (A B, B A, A B, ...) until `seconds` have passed, at least `least` rounds.

    `fewest`: so many are enough where ten times as many seconds have passed.
    """
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    order = list(samplers)
    start = now()
    for done in range(most):
        passed = now() - start
        slow = fewest is not None and done >= fewest and passed >= 10 * seconds
        if slow or (done >= least and passed >= seconds):
            break
        for name in order:
            samples[name].append(samplers[name]())
        order.reverse()
    return samples
