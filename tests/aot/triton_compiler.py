"""Compiles the Triton kernels, as their launch functions launch them, for GPUs that are not there.

Run in a process of its own, with TRITON_INTERPRET=0: ``python -m tests.aot triton <units>``.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .budget import Measurement, Resources
from .triton_launches import LAUNCHES

_POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}
_PTXAS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL)


class _Recorder:
    """Stands in for a kernel and keeps how it is launched."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.calls.append(
                (self.kernel, {**dict(zip(self.kernel.arg_names, args, strict=False)), **kwargs})
            )

        return launch


@contextlib.contextmanager
def _recorded(module: Any, calls: list[tuple[Any, dict[str, Any]]], hip: str | None = None) -> Iterator[None]:
    """Launches go to ``calls``, as a torch that was built for that version of HIP, or for CUDA, makes them."""
    kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    for name, kernel in kernels.items():
        setattr(module, name, _Recorder(kernel, calls))
    before, torch.version.hip = torch.version.hip, hip
    try:
        yield
    finally:
        torch.version.hip = before
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


def _source(kernel: Any, given: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    signature, constants, aligned = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = given.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(position,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned), given


def _resources(compiled: Any, log: str) -> Resources:
    shared = compiled.metadata.shared
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        count = {key: int(n) for key, n in re.findall(r"\.(\w+):\s+(\d+)", text)}
        spilled = 4 * count["vgpr_spill_count"]  # scalar registers spill into vector registers, not to memory
        return {"registers": count["vgpr_count"], "spill_bytes": spilled, "shared_bytes": shared}
    stores, loads, registers = map(int, _PTXAS.findall(log)[-1])
    return {"registers": registers, "spill_bytes": stores + loads, "shared_bytes": shared}


def target(name: str) -> GPUTarget:
    """From "cuda 90" or "hip gfx942"."""
    backend, architecture = name.split()
    return (
        GPUTarget(backend, int(architecture), 32)
        if backend == "cuda"
        else GPUTarget(backend, architecture, 64)
    )


def measure(units: list[str]) -> Measurement:
    """Every launch of LAUNCHES for these units; needs TRITON_DUMP_PTXAS_LOG=1 and an empty cache."""
    measured: Measurement = {unit: {} for unit in units}
    known: dict[str, Resources] = {}  # the compiler reports only what it has not compiled before
    for label, module_name, function, arguments in LAUNCHES:
        module = importlib.import_module(module_name)
        for unit, entries in measured.items():
            name, _, op = unit.rpartition(" ")
            if op != module_name.split(".")[-2]:
                continue
            calls: list[tuple[Any, dict[str, Any]]] = []
            with _recorded(module, calls, hip="7.0" if name.startswith("hip") else None):
                getattr(module, function)(*arguments)
            for kernel, given in calls:
                source, options = _source(kernel, given)
                log = io.StringIO()
                with contextlib.redirect_stdout(log):
                    compiled = triton.compile(source, target=target(name), options=options)
                if compiled.hash not in known:
                    known[compiled.hash] = _resources(compiled, log.getvalue())
                entry = f"{kernel.__name__} [{label}]"
                again = sum(e.startswith(entry) for e in entries)
                entries[f"{entry} call {again + 1}" if again else entry] = known[compiled.hash]
    return measured
