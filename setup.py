"""Builds sequence_kernels/_native_cpu.so, if there is a C++ compiler; everything else is in pyproject.toml.

The library is written on torch's stable C functions (csrc/runtime), so building it needs no torch, and the one file
serves every torch >= 2.10 and every Python. docs/build.md explains the choices made here.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Every csrc/<op>/cpu.cpp is compiled once for each instruction set; the best one the machine has is chosen at run time.
INSTRUCTION_SETS = {
    "x86_64": {
        "generic": "",
        "avx2": "-mavx2 -mfma",
        "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    },
}
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -Wall -Wextra -Wno-psabi"


def find_compiler() -> str | None:
    """The C++ compiler to use, or None where the native library cannot be built."""
    if not sys.platform.startswith("linux"):
        return None
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return next((name for name in candidates if name and shutil.which(name.split()[0])), None)


def ninja_path(path: Path) -> str:
    """A path as ninja's files write it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(compiler: str, library: Path) -> str:
    """The build: objects (with dependency files), an empty libtorch.so to link against, the library."""
    target = subprocess.check_output([*shlex.split(compiler), "-dumpmachine"], text=True)
    instruction_sets = INSTRUCTION_SETS.get(target.split("-")[0], {"generic": ""})
    paths = shlex.join([f"-ffile-prefix-map={ROOT}/=", f"-I{ROOT / 'csrc'}"])
    lines = [
        "rule compile",
        f"  command = {compiler} {FLAGS} {paths} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule stub",
        f"  command = {compiler} -shared -nostdlib -x c /dev/null -o $out -Wl,-soname,$out",
        "rule link",
        f"  command = {compiler} -shared -s $in -o $out -L. -Wl,--no-as-needed -ltorch -Wl,--as-needed",
        "build libtorch.so: stub",
    ]
    objects = []
    for source in sorted((ROOT / "csrc").glob("*/*.cpp")):
        stem = f"{source.parent.name}/{source.stem}"
        variants = instruction_sets if source.name == "cpu.cpp" else {"": ""}
        for name, extra in variants.items():
            objects.append(f"{stem}.{name}.o" if name else f"{stem}.o")
            lines.append(f"build {objects[-1]}: compile {ninja_path(source)}")
            lines.append(f"  flags = {extra} -DSEQUENCE_KERNELS_ISA={name}" if name else "")
    lines += [f"build {ninja_path(library)}: link {' '.join(objects)} | libtorch.so", ""]
    return "\n".join(lines)


class BuildNative(build_ext):
    """Builds the one extension with ninja, as a plain shared library: no Python symbol, no Python suffix."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        compiler = find_compiler()
        assert compiler is not None  # else there would be no extension
        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(
            ninja_file(compiler, Path(self.get_ext_fullpath(ext.name)).resolve())
        )
        ninja = shutil.which("ninja")
        command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
        subprocess.run([*command, "--quiet", "-C", str(build)], check=True)


class Wheel(bdist_wheel):
    """The library has no Python symbol, so its wheel serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


if find_compiler():
    extensions = [Extension("sequence_kernels._native_cpu", [])]
else:
    extensions = []
    print(
        "sequence_kernels: no C++ compiler found, so the native kernels are not built and everything runs on torch "
        "alone; install one (for example `apt-get install g++`) and install again to have them.",
        file=sys.stderr,
    )

setup(ext_modules=extensions, cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel})
