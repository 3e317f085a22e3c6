"""How long a launch would take on a GPU that is not at hand, by what was counted of it: a calculation, no measurement.

A launch takes as long as the slowest of its parts would alone: memory, the second-level cache, the issue of
instructions, each unit, shared memory, and the path of waiting through its blocks, wave after wave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Gpu:
    """Rates a second; where "a cycle", of one multiprocessor. docs/gpu-predictions.md says where they are from."""

    name: str
    architecture: str
    multiprocessors: int
    hertz: float
    memory: float  # bytes that a copy moves, read and written
    cache: float  # bytes of the second-level cache
    latency: float  # seconds, of a load from memory under load
    tensor: float  # flops a cycle: bfloat16 operands of mma.sync, sums in float32; half of it for tf32
    doubles: float  # warps' instructions a cycle, in float64
    shared_bytes: int
    threads: int
    blocks: int
    registers: int = 65536
    issue: float = 4  # warps' instructions a cycle, as many in float32
    integers: float = 2
    launch: float = 2e-6  # seconds from the end of a launch to the work of the next one


H200 = Gpu("H200", "sm_90", 132, 1.755e9, 4.3e12, 5.5e12, 0.6e-6, 2560, 2, 228 << 10, 2048, 32)
RTX_4090 = Gpu("RTX 4090", "sm_89", 128, 2.52e9, 0.93e12, 4.5e12, 0.5e-6, 512, 1 / 16, 100 << 10, 1536, 24)
GPUS = (H200, RTX_4090)

#: Cycles until a result can be used; global memory: ``Gpu.latency``.
LATENCIES = {"arithmetic": 4, "special": 24, "tensor": 33, "shared": 30, "barrier": 20}


@dataclass(frozen=True)
class Work:
    """A launch: its blocks and what each holds, the ``cycles`` a block waits at least, and what all of them do."""

    blocks: int
    threads: int
    registers: int  # of a thread
    shared_bytes: int  # of a block
    cycles: float
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Prediction:
    seconds: float
    bound: str  # the part that takes so long
    resident: int  # blocks of a multiprocessor
    in_flight: float  # bytes loaded that are on their way to a multiprocessor, on average


def resident(gpu: Gpu, work: Work) -> int:
    """Blocks that a multiprocessor holds: registers are given to warps by 256, a block keeps 1 KB of shared memory."""
    warps = math.ceil(work.threads / WARP)
    registers = warps * math.ceil(work.registers * WARP / 256) * 256
    shared = math.ceil((work.shared_bytes + 1024) / 128) * 128
    by_threads = gpu.threads // (warps * WARP)
    return max(1, min(gpu.blocks, by_threads, gpu.registers // registers, gpu.shared_bytes // shared))


def predict(gpu: Gpu, work: Work) -> Prediction:
    """Of one launch."""
    c, cycles = work.counts, gpu.hertz * gpu.multiprocessors  # a second, of all multiprocessors
    held = resident(gpu, work)
    path = work.cycles / gpu.hertz
    waves = math.ceil(work.blocks / (held * gpu.multiprocessors))
    parts = {
        "memory": 32 * c["block_sectors"] / gpu.memory,
        "cache": 32 * c["sectors"] / gpu.cache,
        "issue": c["instructions"] / (gpu.issue * cycles),
        "float64": c["doubles"] / (gpu.doubles * cycles),
        "integers": c["integer"] / (gpu.integers * cycles),
        "tensor": c["tensor_flops"] / (gpu.tensor * cycles),
        "shared": c["shared_passes"] / cycles,
        "latency": waves * path,
    }
    bound = max(parts, key=lambda name: parts[name])
    read = c["global_read_bytes"] / work.blocks
    return Prediction(
        parts[bound] + gpu.launch, bound, held, held * read * gpu.latency / path if path else 0.0
    )
