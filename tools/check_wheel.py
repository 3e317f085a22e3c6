"""Looks at what is in a wheel, installs it under several versions of torch and Python, and runs the doctor and
tools/smoke.py in each.

    python tools/check_wheel.py dist/sequence_kernels-0.1.0-py3-none-manylinux_2_28_x86_64.whl \\
        --environment python3.10 2.10.0 --environment python3.13 2.15.0

Without --environment: this Python and the torch of constraints.txt; --contents: a look at what is in it alone, as of a
wheel for another machine. A torch with CUDA is gigabytes of downloads; the
environments are made one after another in build/check and removed again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from fingerprint import fingerprint

ROOT = Path(__file__).parents[1]


def run(*command: str | Path) -> str:
    """What the command printed; raises RuntimeError with all of it if it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT / "build", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def elf_machine(library: bytes) -> str | None:
    """What a shared library is compiled for; None if that is unknown."""
    known = {62: "x86_64", 183: "aarch64"}
    return known.get(int.from_bytes(library[18:20], "little")) if library[:4] == b"\x7fELF" else None


def faults(wheel: Path) -> list[str]:
    """What is wrong with the wheel's name and contents: one for every Python, with whole libraries and no sources."""
    found = []
    if not re.fullmatch(r"sequence_kernels-[^-]+-py3-none-manylinux_\w+\.whl", wheel.name):
        found.append(f"{wheel.name} is not a manylinux wheel for every Python 3")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        stream = ("stream/lib/libsequence_stream.so", "stream/include/sequence_stream.h")
        wanted = ("_native_cpu.so", "_native_cpu.json", "py.typed", *stream)
        found += [f"it lacks {name}" for name in wanted if f"sequence_kernels/{name}" not in names]
        found += [
            f"it holds {name}"
            for name in sorted(names)
            if name.startswith(("bench/", "csrc/", "examples/", "tests/", "tools/"))
        ]
        machine = wheel.stem.partition("manylinux_")[2].partition("_")[2].partition("_")[2]
        found += [
            f"{name} is not for {machine}"
            for name in sorted(names)
            if name.endswith(".so") and (its := elf_machine(archive.read(name))) and its != machine
        ]
        for name in sorted(names):
            facts = f"{name.removesuffix('.so')}.json"
            if name.endswith(".so") and facts in names:
                said, library = json.loads(archive.read(facts)), archive.read(name)
                if not fingerprint(library).items() <= said.items():
                    found.append(f"{facts} does not tell the size and hash of {name}")
            elif name.endswith(".so") and name.removeprefix("sequence_kernels/") not in wanted:
                found.append(f"{name} has no {facts}")
    return found


def check(wheel: Path, python: str, torch: str) -> str:
    """One row: what was installed, what the doctor and the smoke test said."""
    folder = ROOT / "build" / "check"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run(python, "-m", "venv", folder)
        inside = folder / "bin" / "python"
        pip: list[str | Path] = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        run(*pip, f"torch=={torch}", "numpy")
        run(*pip, wheel)
        report: dict[str, Any] = json.loads(run(inside, "-m", "sequence_kernels", "--json"))
        worst = max(error for errors in report["self_test"].values() for error in errors.values())
        said = run(inside, ROOT / "tools" / "smoke.py").strip()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seen = report["versions"]
    return (
        f"python {seen['python']}, torch {seen['torch']}: sequence_kernels {seen['sequence_kernels']}, "
        f"doctor ok (largest error {worst:.0e}), {said}"
    )


def pinned() -> str:
    """The torch of constraints.txt."""
    found = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--environment", nargs=2, action="append", metavar=("PYTHON", "TORCH"))
    parser.add_argument("--contents", action="store_true", help="install it nowhere")
    given = parser.parse_args()
    wrong = faults(given.wheel)
    for fault in wrong:
        print(f"{given.wheel.name}: {fault}", flush=True)
    failures = len(wrong)
    environments = [] if given.contents else given.environment or [(sys.executable, pinned())]
    for python, torch in environments:
        try:
            print(check(given.wheel.resolve(), python, torch), flush=True)
        except RuntimeError as error:
            failures += 1
            print(f"{python}, torch {torch}: FAILED\n{error}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
