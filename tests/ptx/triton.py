"""Triton kernels that are launched on CPU tensors and run as the PTX that Triton makes of that launch."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from tests import triton_kernels
from tests.aot.digest import digest
from tests.aot.triton_units import followed
from tests.cuda_driver.driver import _extent
from tests.cuda_emulator import build as emulator

from .build import BUILD
from .file import File, Timing, Traffic
from .triton_compiler import Compiled, Launch, Worker

worker = functools.cache(Worker)


def skip_reason() -> str | None:
    """Why the Triton kernels' PTX cannot be run here; None if it can."""
    if triton_kernels.device() != "cpu":
        return "there is a GPU, which runs the Triton kernels itself"
    return emulator.skip_reason() or triton_kernels.skip_reason()


def kept(launch: Launch, suffix: str, make: Callable[[Launch], Any]) -> Any:
    """What was made, under build/ptx by the hash of the launch and of what the kernel's module reads."""
    import triton

    source = Path(str(sys.modules[launch.module].__file__))
    key = digest([triton.__version__, repr(launch)], followed(source, set()))
    path = BUILD / "triton" / f"{launch.kernel}-{launch.target.replace(' ', '')}-{key}{suffix}"
    if not path.exists():
        made = make(launch)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{id(made)}")
        new.write_text(json.dumps(made))
        new.rename(path)
    return json.loads(path.read_text())


def compiled(launch: Launch) -> Compiled:
    return Compiled(*kept(launch, ".json", worker().compile))


def registers(launch: Launch) -> int:
    """Of a thread, as Triton's ptxas gives them."""
    found: int = kept(launch, ".registers", _registers)
    return found


def _registers(launch: Launch) -> int:
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    capability = int(launch.target.split()[1])
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as text:
        text.write(compiled(launch).ptx)
        text.flush()
        of = f"--gpu-name={sm_arch_from_capability(capability)}"
        command = [get_ptxas(capability).path, "-v", "--regAllocOptLevel=2", of, text.name, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return max(int(used) for used in re.findall(r"Used (\d+) registers", log))


class TritonPtx:
    """Triton's kernels on one target; counts what they execute, and remembers the PTX that ran."""

    def __init__(self, target: str = "cuda 80") -> None:
        self.target = target
        self.executed = 0
        self.files: dict[str, File] = {}
        self.checked = True
        self.traffic: Traffic | None = None  # counted if there is one
        self.timing: Timing | None = None
        self._made: dict[str, Compiled] = {}

    def described(self, value: Any) -> Any:
        """Of an argument that is no constant, what it is compiled for: its type, whatever the number."""
        if isinstance(value, torch.Tensor):
            return value.dtype
        return None if value is None else type(value)()

    def run(self, launch: Launch, grid: tuple[int, ...], values: dict[str, Any]) -> None:
        key = repr(launch)
        if key not in self._made:
            self._made[key] = compiled(launch)
        made = self._made[key]
        if key not in self.files:
            self.files[key] = File(made.ptx)
        file = self.files[key]
        (name,) = file.kernels
        params = bytearray(max((offset + size for offset, size in file.params(name)), default=0) or 8)
        for argument, (offset, size) in zip(made.passed, file.params(name), strict=False):
            value = values[argument]
            if isinstance(value, torch.Tensor):
                value = value.data_ptr()
            kind = {4: "f", 8: "d"}[size] if isinstance(value, float) else {4: "i", 8: "q"}[size]
            struct.pack_into(f"<{kind}", params, offset, value)
        buffers = [
            (name, value.data_ptr(), _extent(value), min(4, value.element_size()))
            for name, value in values.items()
            if self.checked and isinstance(value, torch.Tensor) and value.numel()
        ]
        memory = np.frombuffer(params, dtype=np.uint8)
        size = (*grid, 1, 1)[:3]
        block = (32 * made.warps, 1, 1)
        order = ("random", self.executed % 1000)
        # Lanes that hold the same element load it all, and one stores: Triton counts on their lockstep.
        self.executed += file.run(
            name,
            memory.ctypes.data,
            size,
            block,
            made.shared_bytes,
            *order,
            buffers,
            of_triton=True,
            traffic=self.traffic,
            timing=self.timing,
        )


class Kernel:
    """Stands in for a kernel of a module; ``kernel[grid](...)`` runs its PTX."""

    def __init__(self, machine: TritonPtx, module: ModuleType, name: str) -> None:
        self._machine, self._module, self._name = machine, module.__name__, name
        parameters = inspect.signature(getattr(module, name).fn).parameters
        self._parameters = list(parameters)
        self._sizes = {p.name for p in parameters.values() if "constexpr" not in str(p.annotation)}

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            values = {**dict(zip(self._parameters, arguments, strict=False)), **options}
            described = {k: self._machine.described(v) if k in self._sizes else v for k, v in values.items()}
            size = grid(values) if callable(grid) else grid
            self._machine.run(Launch(self._module, self._name, self._machine.target, described), size, values)

        return launch


@contextlib.contextmanager
def on_ptx(module: ModuleType, machine: TritonPtx) -> Iterator[None]:
    """The module's launch functions launch PTX."""
    kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    for name in kernels:
        setattr(module, name, Kernel(machine, module, name))
    try:
        yield
    finally:
        for name, value in kernels.items():
            setattr(module, name, value)


of_target = functools.cache(TritonPtx)
