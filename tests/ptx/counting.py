"""A machine for the stand-in driver that counts what the kernels execute and move."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from .file import Traffic
from .machine import Ptx, source_of

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

    def counts(self) -> dict[str, int]:
        opcodes: Counter[str] = Counter()
        for kernel, before in self._before.items():
            opcodes += self._executed(kernel) - before
        found = {name: int(getattr(self.traffic, name)) for name, _ in Traffic._fields_}
        found["launches"] = self._launches.total()
        found["instructions"] = opcodes.total()
        found["flops"] = sum(flops(opcode) * n for opcode, n in opcodes.items())
        for each in KINDS:
            found[each] = sum(n for opcode, n in opcodes.items() if kind(opcode) == each)
        self.traffic, self._before = Traffic(), {}
        self._launches.clear()
        return found
