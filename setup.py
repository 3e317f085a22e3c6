"""Builds, if there is a C++ compiler, sequence_kernels/_native_cpu.so and, for programs in C,
sequence_kernels/stream/lib/libsequence_stream.so; everything else is in pyproject.toml.

SEQUENCE_KERNELS_CUDA=13.0 asks for sequence_kernels/_native_cuda.so too, compiled for that CUDA by what
tools/cuda_compiler.py finds. Beside each library a .json file says what it was built with, its size and its hash.

The libraries are written on torch's stable C functions (csrc/runtime), so building them needs no torch, and the one
file serves every torch >= 2.10 and every Python. docs/build.md explains the choices made here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "tools"))
import cpp_compiler  # noqa: E402
import cuda_compiler  # noqa: E402
from cpp_compiler import bfloat16_sets, instruction_sets  # noqa: E402
from cuda_compiler import Cuda  # noqa: E402
from fingerprint import build_number, fingerprint  # noqa: E402

# Every csrc/<op>/cpu.cpp and cpu_backward.cpp is compiled once for each instruction set; the best one that the machine
# has is chosen at run time. A cpu.cpp without a register.cpp is the op too, compiled once more without a set.
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast -Wall -Wextra -Wno-psabi"
NVCC_FLAGS = "-std=c++17 -O3 -fatbin"

# Of the sources as a build begins: whoever changes one meanwhile gets a library that is older than its sources.
BUILD = build_number(ROOT / "csrc")

# libsequence_stream: the interpreter of step programs, and what needs neither torch nor libstdc++.
STREAM = ("step_program/cpu", "runtime/cpu_isa", "stream/")
STREAM_LINK = "-Wl,-soname,libsequence_stream.so -Wl,--gc-sections -nodefaultlibs -lm -lc -lgcc"
STREAM_FILES = ("lib/libsequence_stream.so", "include/sequence_stream.h")


def find_compiler() -> str | None:
    """The C++ compiler to use, or None where the native library cannot be built."""
    if not sys.platform.startswith("linux"):
        return None
    return cpp_compiler.find()


def find_cuda(compiler: str | None) -> Cuda | None:
    """The compiler of the CUDA version that SEQUENCE_KERNELS_CUDA asks for, or None if it asks for none."""
    version = os.environ.get("SEQUENCE_KERNELS_CUDA", "")
    if not version:
        return None
    if compiler is None:
        sys.exit(f"SEQUENCE_KERNELS_CUDA={version} needs a C++ compiler; install one, for example g++")
    cuda = cuda_compiler.find(version)
    print(f"sequence_kernels: {cuda.name} compiles for sm_{', sm_'.join(cuda.architectures)}")
    return cuda


def ninja_path(path: Path) -> str:
    """A path as ninja's files write it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_file(compiler: str, cuda: Cuda | None, folder: Path) -> str:
    """The build: objects (with dependency files), an empty libtorch.so to link against, the libraries."""
    include = shlex.quote(f"-I{ROOT / 'csrc'}")
    paths = f"{shlex.quote(f'-ffile-prefix-map={ROOT}/=')} {include} -include runtime/old_glibc.h"
    whole = "" if "-fsanitize" in compiler else " -Wl,-z,defs"  # what libc and libm lack is an error
    ccache = "ccache " if shutil.which("ccache") else ""
    lines = [
        "rule compile",
        f"  command = {ccache}{compiler} {FLAGS} {paths} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule stub",
        f"  command = {compiler} -shared -nostdlib -x c /dev/null -o $out -Wl,-soname,$out",
        "rule link",
        f"  command = {compiler} -shared -s $in -o $out -L. -Wl,--no-as-needed -ltorch -Wl,--as-needed",
        "rule link_stream",
        f"  command = {compiler} -shared -s $in -o $out {STREAM_LINK}{whole}",
        "rule copy",
        "  command = cp $in $out",
        "build libtorch.so: stub",
    ]
    libraries: dict[str, list[str]] = {"cpu": []}
    stream: list[str] = []
    if cuda:
        libraries["cuda"] = ["runtime/old_libstdcxx.o"]
        lines += cuda_rules(compiler, cuda, include)
        for source in sorted((ROOT / "csrc").glob("*/*.cu")):
            name = fat_binary(source)
            libraries["cuda"].append(f"{name}.fatbin.o")
            lines += [
                f"build {name}.fatbin: nvcc {ninja_path(source)}",
                f"build {name}.fatbin.o: embed {name}.fatbin | {ninja_path(ROOT / 'csrc/runtime/embed.S')}",
                f"  symbol = {name}_fatbin",
            ]
    for source in sorted((ROOT / "csrc").glob("*/*.cpp")):
        library = libraries.get("cuda" if source.stem.startswith("cuda") else "cpu")
        if library is None:
            continue
        stem = f"{source.parent.name}/{source.stem}"
        variants = instruction_sets(compiler) if source.stem in ("cpu", "cpu_backward") else {}
        if source.stem == "cpu_bfloat16":
            variants = bfloat16_sets(compiler)
            if not variants:
                continue
        is_op = source.stem == "cpu" and not source.with_name("register.cpp").exists()
        if is_op or not variants:
            variants = {**variants, "": ""}
        for name, extra in variants.items():
            made = f"{stem}.{name}.o" if name else f"{stem}.o"
            if stem.startswith(STREAM):
                stream.append(made)
            if source.parent.name != "stream":
                library.append(made)
            lines.append(f"build {made}: compile {ninja_path(source)}")
            if name:
                lines.append(f"  flags = {extra} -DSEQUENCE_KERNELS_ISA={name}")
            elif stem == "runtime/received":
                lines.append(f"  flags = -DSEQUENCE_KERNELS_BUILD={BUILD}")
    header = ROOT / "csrc/stream/sequence_stream.h"
    if header.exists():  # not in the tree of a test that is about the other libraries
        to_library, to_header = (ninja_path(folder / "stream" / name) for name in STREAM_FILES)
        lines.append(f"build {to_library}: link_stream {' '.join(stream)}")
        lines.append(f"build {to_header}: copy {ninja_path(header)}")
    for name, objects in libraries.items():
        lines.append(
            f"build {ninja_path(folder / f'_native_{name}.so')}: link {' '.join(objects)} | libtorch.so"
        )
    return "\n".join([*lines, ""])


def fat_binary(source: Path) -> str:
    """The name of a .cu file's fat binary: ssm_step/cuda.cu is ssm_step, ssm_conv/cuda_tail.cu is ssm_conv_tail."""
    return source.stem.replace("cuda", source.parent.name, 1)


def cuda_rules(compiler: str, cuda: Cuda, include: str) -> list[str]:
    """Device code to a fat binary, with PTX for GPUs to come, and that to an object."""
    newest = cuda.architectures[-1]
    codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in cuda.architectures]
    codes.append(f"-gencode arch=compute_{newest},code=compute_{newest}")
    embed = (
        f"{compiler} -DSYMBOL=$symbol '-DFATBIN=\"$in\"' -c {shlex.quote(str(ROOT / 'csrc/runtime/embed.S'))}"
    )
    return [
        "rule nvcc",
        f"  command = {shlex.join(cuda.command)} {NVCC_FLAGS} {' '.join(codes)} {include} -MMD -MF $out.d $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule embed",
        f"  command = {embed} -o $out",
    ]


def built_with(compiler: str, cuda: Cuda | None) -> dict[str, dict[str, object]]:
    """What is kept beside each library, for `python -m sequence_kernels`."""
    version = subprocess.check_output([*shlex.split(compiler), "--version"], text=True).splitlines()[0]
    facts: dict[str, dict[str, object]] = {
        "cpu": {
            "compiler": version,
            "instruction_sets": list(instruction_sets(compiler)),
            "build": BUILD,
        }
    }
    if cuda:
        facts["cuda"] = {
            "cuda": cuda.version,
            "compiler": cuda.name,
            "architectures": cuda.architectures,
            "ptx": cuda.architectures[-1],
        }
    return facts


class BuildNative(build_ext):
    """Builds the extensions with ninja, as plain shared libraries: no Python symbol, no Python suffix."""

    build_temp: str

    def finalize_options(self) -> None:
        """Every command, of whatever wheel, compiles where ``build_ext --inplace`` does, and then only links."""
        if compiler and not self.build_temp:
            name = f"temp.linux-{cpp_compiler.machine(compiler)}-{sys.implementation.cache_tag}"
            self.build_temp = str(ROOT / "build" / name)
        super().finalize_options()

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        assert compiler is not None  # else there would be no extension
        folder = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        build = Path(self.build_temp).resolve() / "native"
        build.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(ninja_file(compiler, cuda, folder))
        ninja = shutil.which("ninja")
        command = [ninja] if ninja else [sys.executable, "-m", "ninja"]
        subprocess.run([*command, "--quiet", "-C", str(build)], check=True)
        for name, facts in built_with(compiler, cuda).items():
            facts |= fingerprint((folder / f"_native_{name}.so").read_bytes())
            (folder / f"_native_{name}.json").write_text(json.dumps(facts, indent=1) + "\n")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        for facts in (Path(self.build_lib) / "sequence_kernels").glob("_native_*.json"):
            shutil.copy(facts, ROOT / "sequence_kernels")
        for made in (Path(self.build_lib) / "sequence_kernels/stream").glob("*/*"):
            to = ROOT / "sequence_kernels/stream" / made.parent.name
            to.mkdir(exist_ok=True)
            shutil.copy(made, to)


class Wheel(bdist_wheel):
    """The library has no Python symbol, so its wheel serves every Python 3 of the machine that it is compiled for."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()[2]
        if compiler and (machine := cpp_compiler.machine(compiler)) != platform.machine():
            tag = f"linux_{machine}"
        return "py3", "none", tag


compiler = find_compiler()
cuda = find_cuda(compiler)
if compiler is None:
    print(
        "sequence_kernels: no C++ compiler found, so the native kernels are not built and everything runs on torch "
        "alone; install one (for example `apt-get install g++`) and install again to have them.",
        file=sys.stderr,
    )

built = {"cpu": compiler, "cuda": cuda}


def description() -> str:
    """README.md for a package index, where links to files of the repository lead nowhere: their names remain."""
    return re.sub(
        r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", (ROOT / "README.md").read_text(encoding="utf-8")
    )


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension(f"sequence_kernels._native_{name}", []) for name, by in built.items() if by],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
