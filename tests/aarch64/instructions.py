"""Instructions of a step by the C library, counted under qemu: aarch64 beside x86-64 with and without AVX2.

    python -m tests.aarch64.instructions

Each program steps 4 rows and 8 rows; printed is the difference over 4. Needs g++-aarch64-linux-gnu and
qemu-user-static.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from sequence_kernels import SequenceModel, SequenceModule
from tools.cpp_compiler import instruction_sets

from ..examples.loading import loaded

ROOT = Path(__file__).parents[2]
FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", f"-I{ROOT / 'csrc'}"]
MACHINES = {  # compiler, and what runs the program
    "aarch64": ("aarch64-linux-gnu-", ["qemu-aarch64-static", "-cpu", "max"]),
    "x86-64 without AVX2": ("", ["qemu-x86_64-static", "-cpu", "qemu64"]),
    "AVX2": ("", ["qemu-x86_64-static", "-cpu", "max"]),
}
WIDTH = 64


def models() -> dict[str, SequenceModule]:
    layers: dict[str, Any] = {
        "s4d and ff": [{"_name_": "s4d", "d_state": 64}, "ff"],
        "s4": [{"_name_": "s4", "d_state": 64}],
        "mamba": "mamba",
        "gru": "gru",
    }
    made = {
        name: SequenceModel(WIDTH, layer=layer, residual="R", norm="layer") for name, layer in layers.items()
    }
    return {"denoiser": loaded("streaming_audio").Denoiser()} | made


def compiled(prefix: str, folder: Path) -> Path:
    """tests/stream/steps.c and the library in one static program."""
    compiler, folder = f"{prefix}g++", folder / (prefix or "x86")
    folder.mkdir(exist_ok=True)
    sets = {
        name: [*flags.split(), f"-DSEQUENCE_KERNELS_ISA={name}"]
        for name, flags in instruction_sets(compiler).items()
    }
    sources = [("step_program/cpu.cpp", flags) for flags in sets.values()]
    sources += [("runtime/cpu_isa.cpp", []), ("stream/stream.cpp", [])]
    objects = [str(folder / f"{i}.o") for i in range(len(sources))]
    for (source, flags), made in zip(sources, objects, strict=True):
        command = [compiler, "-std=c++17", *FLAGS, *flags, "-c", str(ROOT / "csrc" / source), "-o", made]
        subprocess.run(command, check=True)
    steps = [str(ROOT / "tests/stream/steps.c"), *objects, "-lm", "-static", "-o", str(folder / "steps")]
    subprocess.run([f"{prefix}gcc", *FLAGS, *steps], check=True)
    return folder / "steps"


def counted(command: list[str], rows: bytes) -> int:
    """Instructions of the whole program: qemu writes a line for each."""
    with tempfile.TemporaryFile() as given:
        given.write(rows)
        given.seek(0)
        log, out = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(command, stdin=given, stdout=out, stderr=log) as process:
            assert process.stderr is not None
            found = sum(line.startswith(b"Trace") for line in process.stderr)
    assert process.returncode == 0
    return found


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {
            prefix: compiled(prefix, folder) for prefix in {prefix for prefix, _ in MACHINES.values()}
        }
        print(f"{'':<12}" + "".join(f"{machine:>22}" for machine in MACHINES))
        for what, model in models().items():
            model.eval().stepper().save(folder / "model.skp")
            x = torch.randn(8, model.d_model)
            data = ctypes.string_at(x.data_ptr(), x.nbytes)
            shown = ""
            for prefix, qemu in MACHINES.values():
                command = [*qemu, "-singlestep", "-d", "exec,nochain", str(programs[prefix])]
                few, many = (
                    counted([*command, str(folder / "model.skp")], part)
                    for part in (data[: len(data) // 2], data)
                )
                shown += f"{(many - few) / 4:>22,.0f}"
            print(f"{what:<12}{shown}", flush=True)


if __name__ == "__main__":
    main()
