"""Calls every op of the native library in a wheel for aarch64 under qemu, and compares with this machine's.

    python -m tests.aarch64 dist/aarch64/*.whl

The calls are those of the ops' samples and their gradients, in float32. No torch for aarch64 is needed (calls.cpp).
"""

from __future__ import annotations

import argparse
import ctypes
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops.hostile import native_ops, recorded

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CXX, QEMU, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.int64,
]
VALUE, REQUIRED, PRESENT, ABSENT = range(4)

#: Of the largest value: what other orders of summation and another exponential may make of float32.
TOLERANCE = 1e-4


def span(tensor: Tensor) -> int:
    """Elements from the first to the last."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def encoded_tensor(tensor: Tensor) -> bytes:
    head = [DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape, *tensor.stride()]
    data = (
        ctypes.string_at(tensor.data_ptr(), span(tensor) * tensor.element_size()) if tensor.numel() else b""
    )
    return struct.pack(f"<{len(head)}q", *head) + data


def encoded(op: Any, arguments: tuple[Any, ...]) -> bytes:
    """A call as calls.cpp reads it."""
    name = op._opname.encode()
    parts = [struct.pack("<q", len(name)), name, struct.pack("<qq", len(op._schema.returns), len(arguments))]
    for argument, value in zip(op._schema.arguments, arguments, strict=True):
        is_written = int(argument.alias_info is not None and argument.alias_info.is_write)
        optional = isinstance(argument.type, torch.OptionalType)
        if isinstance(value, Tensor):
            parts.append(
                struct.pack("<qq", PRESENT if optional else REQUIRED, is_written) + encoded_tensor(value)
            )
        elif value is None:
            parts.append(struct.pack("<qq", ABSENT, 0))
        elif isinstance(value, float) or str(argument.type) == "float":
            parts.append(struct.pack("<qqd", VALUE, 0, value))
        else:
            parts.append(struct.pack("<qqq", VALUE, 0, int(value)))
    return b"".join(parts)


def wanted(op: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """What this machine gives: the arguments that are written to, then the results."""
    given = [a.clone(memory_format=torch.preserve_format) if isinstance(a, Tensor) else a for a in arguments]
    results = op(*given)
    written = [
        value
        for argument, value in zip(op._schema.arguments, given, strict=True)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor)
    ]
    returned = results if isinstance(results, (tuple, list)) else () if results is None else (results,)
    return [*written, *returned]


def read(data: bytes, like: list[list[Tensor]]) -> Iterator[list[Tensor]]:
    at = 0
    for call in like:
        found = []
        for one in call:
            size = span(one) * one.element_size()
            flat = (
                torch.frombuffer(bytearray(data[at : at + size]), dtype=one.dtype)
                if size
                else one.new_empty(0)
            )
            found.append(flat.as_strided(one.shape, one.stride()))
            at += size
        yield found
    assert at == len(data), "there are other results than wanted"


def difference(got: Tensor, want: Tensor) -> float:
    """Largest, over the largest value."""
    if want.numel() == 0:
        return 0.0
    scale = max(float(want.abs().max()), 1e-30)
    return float((got - want).abs().max()) / scale if bool(got.isfinite().all()) else float("inf")


def run(library: Path, folder: Path, calls: bytes, compiler: str, prefix: list[str]) -> bytes:
    """The bytes of all results; ``prefix``: what runs a program."""
    program = folder / "calls"
    flags = ["-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", "-rdynamic", str(HERE / "calls.cpp"), "-ldl"]
    subprocess.run([compiler, *flags, "-o", str(program)], check=True)
    stub = [
        "-shared",
        "-nostdlib",
        "-x",
        "c",
        "/dev/null",
        "-Wl,-soname,libtorch.so",
        "-o",
        str(folder / "libtorch.so"),
    ]
    subprocess.run([compiler, *stub], check=True)
    (folder / "calls.bin").write_bytes(calls)
    arguments = [str(library), str(folder / "calls.bin"), str(folder / "results.bin")]
    subprocess.run([*prefix, str(program), *arguments], check=True)
    return (folder / "results.bin").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    calls = recorded()
    assert {op._opname for op, _ in calls} == {*native_ops()}
    want = [wanted(op, arguments) for op, arguments in calls]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(given.wheel) as archive:
            archive.extract("sequence_kernels/_native_cpu.so", folder)
        library = folder / "sequence_kernels/_native_cpu.so"
        body = struct.pack("<q", len(calls)) + b"".join(encoded(op, arguments) for op, arguments in calls)
        prefix = [QEMU, "-L", SYSTEM, "-E", f"LD_LIBRARY_PATH={folder}"]
        data = run(library, folder, body, CXX, prefix)
    worst: dict[str, float] = {}
    for (op, _), ours, theirs in zip(calls, want, read(data, want), strict=True):
        found = max(difference(got, one) for got, one in zip(theirs, ours, strict=True))
        worst[op._opname] = max(worst.get(op._opname, 0.0), found)
    for name, found in worst.items():
        print(f"{name:<32}{found:.1e}")
    wrong = [name for name, found in worst.items() if not found <= TOLERANCE]
    print(f"{len(calls)} calls of {len(worst)} ops, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
