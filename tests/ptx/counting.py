"""A machine for the stand-in driver that counts what the kernels execute and move."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

from .file import Latencies, Timing, Traffic
from .machine import CSRC, Ptx, source_of

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
        """By opcode."""
        found: Counter[str] = Counter()
        for i in self.file(source_of(kernel)).instructions(kernel):
            found[i.opcode] += i.executed
        return found

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
    """``counts``: of the whole grid, by those blocks that have run; ``cycles``: of a block, by the clock."""

    kernel: str
    source: str  # below csrc/
    blocks: int
    threads: int
    shared_bytes: int
    cycles: int
    counts: dict[str, float]


class Sampling(Counting):
    """Runs some blocks of each launch, whose counts stand for the others': ``launches`` one by one. What the others
    would have written is not written."""

    def __init__(self, architecture: str, latencies: Latencies, sample: int) -> None:
        super().__init__(architecture)
        self.timing: Timing = Timing(latencies, sample)
        self.launches: list[Launch] = []

    def launch(self, kernel: str, params: int, blocks: int, *arguments: Any, **options: Any) -> None:
        self.counts()
        super().launch(kernel, params, blocks, *arguments, **options)
        scale = blocks / self.timing.blocks
        opcodes = self._opcodes()
        found = {name: scale * n for name, n in {**self.counts(), **for_prediction(opcodes)}.items()}
        source = str(source_of(kernel).relative_to(CSRC))
        self.launches.append(Launch(kernel, source, blocks, *arguments, self.timing.cycles, found))
