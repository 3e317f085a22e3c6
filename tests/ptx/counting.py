"""A machine for the stand-in driver that counts what the kernels execute and move."""

from __future__ import annotations

import re
from collections import Counter
from math import prod
from typing import Any, NamedTuple

import torch

from tests.aot import budget

from .file import File, Latencies, Timing, Traffic
from .machine import CSRC, Ptx, source_of
from .triton import TritonPtx, compiled, registers
from .triton_compiler import Launch as Described

_FLOAT = re.compile(r"(add|sub|mul|fma|div|rcp|sqrt|ex2|neg|abs|min|max)\..*f(32|64)$")
_MEMORY = ("ld.global", "ld.shared", "st.", "cp.async.c", "ldmatrix", "stmatrix")
_CONTROL = ("bra", "bar", "ret", "setp", "selp", "shfl", "redux", "cp.async.w")
#: Floating operations of a warp, a multiply-add being two.
_TENSOR = {"m16n8k8": 2048, "m16n8k16": 4096, "m8n8k4": 512}
KINDS = ("float", "tensor", "integer", "memory", "control")


def kind(opcode: str) -> str:
    """One of ``KINDS``; parameters and conversions count with the integers."""
    if opcode.startswith("mma"):
        return "tensor"
    if opcode.startswith(_MEMORY):
        return "memory"
    if opcode.startswith(_CONTROL):
        return "control"
    return "float" if _FLOAT.match(opcode) else "integer"


def flops(opcode: str) -> int:
    """Of all 32 lanes, whether they take part or not."""
    if kind(opcode) == "tensor":
        return _TENSOR[opcode.split(".")[3]]
    if kind(opcode) != "float" or opcode.startswith(("neg", "abs", "min", "max")):
        return 0
    return 64 if opcode.startswith("fma") else 32


def executed(file: File, kernel: str) -> Counter[str]:
    """By opcode."""
    found: Counter[str] = Counter()
    for i in file.instructions(kernel):
        found[i.opcode] += i.executed
    return found


class Counting(Ptx):
    """``counts()``: of the launches since the last time, together."""

    def __init__(self, architecture: str = "sm_80") -> None:
        super().__init__(architecture)
        self.traffic: Traffic = Traffic()
        self._launches: Counter[str] = Counter()
        self._before: dict[str, Counter[str]] = {}

    def launch(self, kernel: str, *arguments: Any, **options: Any) -> None:
        if kernel not in self._before:
            self._before[kernel] = self._executed(kernel)
        self._launches[kernel] += 1
        super().launch(kernel, *arguments, **options)

    def _executed(self, kernel: str) -> Counter[str]:
        return executed(self.file(source_of(kernel)), kernel)

    def _opcodes(self) -> Counter[str]:
        """Executed since the last time, together."""
        found: Counter[str] = Counter()
        for kernel, before in self._before.items():
            found += self._executed(kernel) - before
        return found

    def counts(self) -> dict[str, int]:
        opcodes = self._opcodes()
        found = {name: int(getattr(self.traffic, name)) for name, _ in Traffic._fields_}
        found["launches"] = self._launches.total()
        found["instructions"] = opcodes.total()
        found["flops"] = sum(flops(opcode) * n for opcode, n in opcodes.items())
        for each in KINDS:
            found[each] = sum(n for opcode, n in opcodes.items() if kind(opcode) == each)
        self.traffic, self._before = Traffic(), {}
        self._launches.clear()
        return found


def for_prediction(opcodes: Counter[str]) -> dict[str, int]:
    """What ptxas leaves: moves and parameters cost no instruction. Of these integers, float64, and flops of tensor
    cores, those of tf32 twice, as they run at half the rate."""
    kept = {o: n for o, n in opcodes.items() if not o.startswith(("mov.", "ld.param", "cvta", "cvt.u64.u32"))}
    return {
        "instructions": sum(kept.values()),
        "integer": sum(n for o, n in kept.items() if kind(o) == "integer"),
        "doubles": sum(n for o, n in kept.items() if kind(o) == "float" and o.endswith("f64")),
        "tensor_flops": sum(
            (1 + (".tf32." in o)) * flops(o) * n for o, n in kept.items() if kind(o) == "tensor"
        ),
    }


class Launch(NamedTuple):
    """``counts``: of the whole grid, by those blocks that have run; ``cycles``: of a block, by the clock;
    ``resources``: by architecture, the registers of a thread and the bytes of shared memory of a block."""

    kernel: str
    blocks: int
    threads: int
    cycles: int
    counts: dict[str, float]
    resources: dict[str, tuple[int, int]]


class Sampling(Counting):
    """Runs some blocks of each launch, whose counts stand for the others': ``launches`` one by one. What the others
    would have written is not written."""

    def __init__(
        self, architecture: str, latencies: Latencies, sample: int, targets: tuple[str, ...]
    ) -> None:
        super().__init__(architecture)
        self.timing: Timing = Timing(latencies, sample)
        self.launches: list[Launch] = []
        self._targets = targets

    def launch(
        self,
        kernel: str,
        params: int,
        blocks: int,
        threads: int,
        shared_bytes: int,
        *arguments: Any,
        **options: Any,
    ) -> None:
        self.counts()
        super().launch(kernel, params, blocks, threads, shared_bytes, *arguments, **options)
        scale = blocks / self.timing.blocks
        opcodes = self._opcodes()
        found = {name: scale * n for name, n in {**self.counts(), **for_prediction(opcodes)}.items()}
        source, resources = source_of(kernel).relative_to(CSRC), {}
        for target in self._targets:
            used = budget.read()["nvcc"][f"{target} {source}"][kernel]
            resources[target] = used["registers"], shared_bytes + used["shared_bytes"]
        self.launches.append(Launch(kernel, blocks, threads, self.timing.cycles, found, resources))


class TritonSampling(TritonPtx):
    """``Sampling`` of Triton's kernels, compiled as their launches would be on a GPU."""

    def __init__(self, target: str, latencies: Latencies, sample: int, targets: tuple[str, ...]) -> None:
        super().__init__(target)
        self.checked = False
        self.timing: Timing = Timing(latencies, sample)
        self.launches: list[Launch] = []
        self._targets = targets

    def described(self, value: Any) -> Any:
        if type(value) is int:
            return value if value == 1 else 16 * (value % 16 == 0)
        return super().described(value)

    def run(self, launch: Described, grid: tuple[int, ...], values: dict[str, Any]) -> None:
        held = {name: _held(value) for name, value in values.items()}
        key, self.traffic = repr(launch), Traffic()
        before = self._opcodes(key)
        super().run(launch, grid, held)
        opcodes = self._opcodes(key) - before
        blocks = prod(grid)
        scale, found = blocks / self.timing.blocks, for_prediction(opcodes)
        found |= {name: int(getattr(self.traffic, name)) for name, _ in Traffic._fields_}
        resources = {}
        for target in self._targets:
            there = launch._replace(target=f"cuda {target.removeprefix('sm_')}")
            resources[target] = registers(there), compiled(there).shared_bytes
        self.launches.append(
            Launch(
                launch.kernel,
                blocks,
                32 * compiled(launch).warps,
                self.timing.cycles,
                {name: scale * n for name, n in found.items()},
                resources,
            )
        )

    def _opcodes(self, key: str) -> Counter[str]:
        if key not in self.files:
            return Counter()
        (kernel,) = self.files[key].kernels
        return executed(self.files[key], kernel)


def _held(value: Any) -> Any:
    """On the stand-in GPU, the tensor that has the elements."""
    return getattr(value, "held", value) if isinstance(value, torch.Tensor) else value
