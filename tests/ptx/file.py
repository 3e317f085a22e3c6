"""A file of PTX: its kernels, and launches of them in the interpreter."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.cuda_driver.driver import ORDERS

from .build import build


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("element_bytes", ctypes.c_uint64),
    ]


class Traffic(ctypes.Structure):
    """What a launch moves; interpreter/traffic.h says what each counts."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "global_read_bytes",
            "global_written_bytes",
            "global_accesses",
            "sectors",
            "shared_bytes",
            "shared_passes",
            "bank_conflicts",
            "block_sectors",
            "barriers",
        )
    ]


class Latencies(ctypes.Structure):
    """Cycles until the result of an instruction can be used; interpreter/clock.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("arithmetic", "special", "tensor", "shared", "global_", "barrier")
    ]


@dataclass
class Timing:
    """``sample``: run so many blocks of a launch only, evenly spaced. Answers: ``cycles`` of the longest block, and how
    many ``blocks`` have run."""

    latencies: Latencies
    sample: int
    cycles: int = 0
    blocks: int = 0


class _Request(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("params", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_bytes", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("of_triton", ctypes.c_uint32),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("executed", ctypes.c_uint64),
        ("traffic", ctypes.POINTER(Traffic)),
        ("sample", ctypes.c_uint64),
        ("latencies", ctypes.POINTER(Latencies)),
        ("cycles", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
    ]


class Instruction(NamedTuple):
    """``executed``: times, by a warp."""

    opcode: str
    line: int
    source: str
    executed: int


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build()))
    library.ptx_answer.restype = ctypes.c_char_p
    return library


def _ask(function: str, *arguments: Any) -> list[str]:
    """The lines of the answer; an error is a RuntimeError."""
    failed = getattr(_library(), function)(*arguments)
    answer = _library().ptx_answer().decode()
    if failed:
        raise RuntimeError(answer)
    return answer.splitlines()


def known() -> list[str]:
    """All instructions that the interpreter knows."""
    return _ask("ptx_known")


class File:
    """PTX, parsed; a kernel's instructions are looked up when it is first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._file = ctypes.c_void_p()
        _ask("ptx_open", text.encode(), ctypes.byref(self._file))

    def __del__(self) -> None:
        if self._file:
            _library().ptx_close(self._file)

    @property
    def kernels(self) -> list[str]:
        return _ask("ptx_kernels", self._file)

    def params(self, kernel: str) -> list[tuple[int, int]]:
        """Offset and bytes of each parameter."""
        lines = _ask("ptx_params", self._file, kernel.encode())
        return [(int(offset), int(size)) for offset, size in (line.split("\t") for line in lines)]

    def instructions(self, kernel: str) -> list[Instruction]:
        found = []
        for line in _ask("ptx_instructions", self._file, kernel.encode()):
            opcode, number, source, executed = line.split("\t")
            found.append(Instruction(opcode, int(number), source, int(executed)))
        return found

    def run(
        self,
        kernel: str,
        params: int,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int = 0,
        order: str = "forward",
        seed: int = 0,
        buffers: Sequence[tuple[str, int, int, int]] = (),
        limit: int = 0,
        of_triton: bool = False,
        traffic: Traffic | None = None,
        timing: Timing | None = None,
    ) -> int:
        """A launch; the instructions that warps executed.

        ``params``: the address of the parameters. ``buffers``: name, address, bytes and element bytes; if there are
        any, each access is checked. ``order``: one of ``ORDERS``. More than ``limit`` instructions are a fault.
        """
        given = (_Buffer * max(1, len(buffers)))(*((b[0].encode(), *b[1:]) for b in buffers))
        request = _Request(
            kernel.encode(), params, tuple(grid), tuple(block), shared, ORDERS.index(order), seed, of_triton,
            given, len(buffers), limit, 0, ctypes.pointer(traffic) if traffic is not None else None,
            timing.sample if timing else 0, ctypes.pointer(timing.latencies) if timing else None, 0, 0,
        )  # fmt: skip
        _ask("ptx_run", self._file, ctypes.byref(request))
        if timing:
            timing.cycles, timing.blocks = int(request.cycles), int(request.blocks)
        return int(request.executed)
