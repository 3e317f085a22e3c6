"""Compiles device code to a fat binary with NVRTC and nvFatbin, instead of nvcc where there is none.

    python tools/nvrtc.py --cuda FOLDER -gencode arch=compute_90,code=sm_90 -I csrc -MF x.d x.cu -o x.fatbin

takes the options of nvcc that setup.py uses. FOLDER is where pip has put NVIDIA's packages (its `nvidia` folder).
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def library(folder: Path, name: str) -> ctypes.CDLL:
    """The one library of that name below the folder; raises FileNotFoundError where there is none."""
    found = sorted(folder.glob(f"*/lib/lib{name}.so.*"))
    if not found:
        raise FileNotFoundError(f"there is no lib{name} in {folder}")
    return ctypes.CDLL(str(found[0]))


def version(folder: Path) -> str:
    """The version of CUDA that the folder's NVRTC is of, for example 12.9."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library(folder, "nvrtc").nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


class Nvrtc:
    """NVRTC, with a failing call turned into an error that holds the compiler's messages."""

    def __init__(self, folder: Path) -> None:
        self._library = library(folder, "nvrtc")
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, source: Path, options: list[str], kind: str) -> bytes:
        """The source as machine code (kind "CUBIN") or as PTX for the architecture that the options name."""
        program = ctypes.c_void_p()
        text = source.read_bytes()
        self._call("CreateProgram", ctypes.byref(program), text, str(source).encode(), 0, None, None)
        encoded = [option.encode() for option in options]
        given = (ctypes.c_char_p * len(encoded))(*encoded)
        if self._library.nvrtcCompileProgram(program, len(encoded), given) != 0:
            sys.exit(self._get("ProgramLog", program).rstrip(b"\0").decode())
        code = self._get(kind, program)
        self._call("DestroyProgram", ctypes.byref(program))
        return code

    def _get(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._library, f"nvrtc{function}")(*arguments)
        if result != 0:
            sys.exit(f"nvrtc{function}: {self._library.nvrtcGetErrorString(result).decode()}")


class FatBinary:
    """nvFatbin: code for several architectures in one file."""

    def __init__(self, folder: Path) -> None:
        self._library = library(folder, "nvfatbin")
        self._library.nvFatbinGetErrorString.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        options = (ctypes.c_char_p * 1)(b"-64")
        self._call("Create", ctypes.byref(self._handle), options, 1)

    def add(self, kind: str, code: bytes, architecture: str) -> None:
        """Add machine code (kind "CUBIN") or PTX for the architecture, for example 90."""
        name = b"kernels"
        more = [b""] if kind == "PTX" else []
        function = {"CUBIN": "AddCubin", "PTX": "AddPTX"}[kind]
        self._call(
            function,
            self._handle,
            code,
            ctypes.c_size_t(len(code)),
            architecture.encode(),
            name,
            *more,
        )

    def contents(self) -> bytes:
        size = ctypes.c_size_t()
        self._call("Size", self._handle, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call("Get", self._handle, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._library, f"nvFatbin{function}")(*arguments)
        if result != 0:
            sys.exit(f"nvFatbin{function}: {self._library.nvFatbinGetErrorString(result).decode()}")


def included(source: Path, folders: list[Path], seen: set[Path]) -> Iterator[Path]:
    """The project's own files that the source includes, each once, itself first."""
    if source in seen:
        return
    seen.add(source)
    yield source
    for name in re.findall(r'^\s*#\s*include\s+"(.+)"', source.read_text(), re.MULTILINE):
        for folder in (source.parent, *folders):
            if (folder / name).exists():
                yield from included(folder / name, folders, seen)
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cuda", type=Path, required=True)
    parser.add_argument("-std", default="c++17")
    parser.add_argument("-gencode", action="append", required=True)
    parser.add_argument("-I", dest="include", action="append", type=Path, default=[])
    parser.add_argument("-MF", dest="dependencies", type=Path)
    parser.add_argument("-o", dest="output", type=Path, required=True)
    parser.add_argument("source", type=Path)
    given, _ = parser.parse_known_args()

    headers = given.cuda.glob("*/include")
    # Of a generic lambda in device code NVRTC 12 says that it is the host's, nvcc that it is the device's.
    options = ["-default-device", f"-std={given.std}"]
    options += [f"-I{folder}" for folder in (*given.include, *headers)]
    compiler, fat = Nvrtc(given.cuda), FatBinary(given.cuda)
    for wanted in given.gencode:
        code = wanted.partition("code=")[2]
        kind, architecture = ("CUBIN" if code.startswith("sm_") else "PTX"), code.partition("_")[2]
        fat.add(kind, compiler.compile(given.source, [*options, f"-arch={code}"], kind), architecture)
    given.output.write_bytes(fat.contents())
    if given.dependencies:
        files = " ".join(
            str(path).replace(" ", "\\ ") for path in included(given.source, given.include, set())
        )
        given.dependencies.write_text(f"{given.output}: {files}\n")


if __name__ == "__main__":
    main()
