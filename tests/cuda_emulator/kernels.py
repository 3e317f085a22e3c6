"""Kernels of .cu files as Python functions: params by field name, tensors for pointers."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

import torch

from .build import ROOT, build, skip_reason, sources

__all__ = ["Kernels", "skip_reason"]

_C_TYPES = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "int": ctypes.c_int32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "bool": ctypes.c_bool,
}
_STRUCT = re.compile(r"^struct (\w+) \{(.*?)^\};", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"^\s*((?:const\s+)?\w+)\s*(\*?)\s*(\w+(?:\s*,\s*\w+)*);", re.MULTILINE)


def _fields(body: str) -> list[tuple[str, Any]]:
    fields = []
    for kind, pointer, names in _FIELD.findall(body):
        for name in names.split(","):
            fields.append((name.strip(), ctypes.c_void_p if pointer else _C_TYPES[kind]))
    return fields


def params_types(kernels: Sequence[Path]) -> dict[str, type[ctypes.Structure]]:
    """The plain params structs of kernel files and of the headers of csrc/ that they include, as ctypes."""
    found = {}
    for path in sources(kernels):
        for name, body in _STRUCT.findall(path.read_text()):
            if name.endswith("Params"):
                found[name] = type(name, (ctypes.Structure,), {"_fields_": _fields(body)})
    return found


class Kernels:
    """The kernels of the .cu files that a pattern names, those of one folder.

    ``check=True`` compiles them so that every load and store is checked (bounds, unwritten shared memory,
    races). ``run`` takes the fields of the kernel's params struct by name; pointers are tensors (None:
    null). ``order`` is "forward", "reverse", "random" or "skewed": how threads and blocks take turns between
    barriers. A fault raises RuntimeError that names the kernel, the block and the thread.
    """

    def __init__(self, pattern: str, *, check: bool = False) -> None:
        paths = sorted(ROOT.glob(pattern))
        module = build(paths, check)
        name = f"{module.parent.name}._cuda_emulator"  # pybind11 keeps one module a full name
        loader = ExtensionFileLoader(name, str(module))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        self._module = importlib.util.module_from_spec(spec)
        loader.exec_module(self._module)
        self._check = check
        types = params_types(paths)
        self._params = {}
        for kernel, (params, size) in self._module.kernels().items():
            if ctypes.sizeof(types[params]) != size:
                raise TypeError(
                    f"{params} is not a plain struct of pointers and numbers: cannot fill it from Python"
                )
            self._params[kernel] = types[params]

    @property
    def names(self) -> list[str]:
        return sorted(self._params)

    def _pack(self, kernel: str, fields: dict[str, Any]) -> tuple[bytes, list[tuple[str, int, int, int]]]:
        kind = self._params[kernel]
        expected = {field[0] for field in kind._fields_}
        if set(fields) != expected:
            raise TypeError(f"{kernel} takes {sorted(expected)}, got {sorted(fields)}")
        params, buffers = kind(), []
        for name, value in fields.items():
            if isinstance(value, torch.Tensor):
                if not value.is_contiguous():
                    raise ValueError(f"{name} must be contiguous: a kernel sees its memory")
                element = min(4, value.element_size())
                buffers.append((name, value.data_ptr(), value.numel() * value.element_size(), element))
                value = value.data_ptr()
            setattr(params, name, value)
        return bytes(params), buffers

    def launch_rule(self, kernel: str, fields: dict[str, Any]) -> tuple[int, int, int]:
        """Blocks, threads and bytes of dynamic shared memory that the kernel's launch rule gives."""
        grid, block, shared = self._module.launch_rule(kernel, self._pack(kernel, fields)[0])
        return grid[0], block[0], shared

    def run(self, kernel: str, fields: dict[str, Any], *, order: str = "forward", seed: int = 0) -> None:
        packed, buffers = self._pack(kernel, fields)
        self._module.run(kernel, packed, order, seed, buffers if self._check else [])
