"""The C library for aarch64, compiled here and run under qemu."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import MambaLM

from ..test_law import WIDTH, close
from ..test_stepper import model, native

ROOT = Path(__file__).parents[2]
CXX, CC, QEMU = "aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
ABSENT = [tool for tool in (CXX, CC, QEMU) if shutil.which(tool) is None]
pytestmark = [
    native,
    pytest.mark.skipif(bool(ABSENT), reason="needs apt-get install g++-aarch64-linux-gnu qemu-user-static"),
]
FLAGS = ["-O2", "-fno-math-errno", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """steps.c and the library in one static program."""
    folder = tmp_path_factory.mktemp("aarch64")
    interpreter = ["-DSEQUENCE_KERNELS_ISA=generic", str(ROOT / "csrc/step_program/cpu.cpp")]
    rest = [str(ROOT / "csrc/runtime/cpu_isa.cpp"), str(ROOT / "csrc/stream/stream.cpp")]
    for command in (interpreter, rest):
        subprocess.run([CXX, "-std=c++17", *FLAGS, "-c", *command], check=True, cwd=folder)
    objects = [str(path) for path in folder.glob("*.o")]
    program = folder / "steps"
    command = [
        CC,
        *FLAGS,
        str(Path(__file__).parent / "steps.c"),
        *objects,
        "-lm",
        "-static",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)  # and so needs nothing of C++
    return program


def bytes_of(tensor: Tensor) -> bytes:
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)


@pytest.mark.parametrize("state_dtype", [None, torch.float64])
@pytest.mark.parametrize("kind", ["stack", "recurrent", "mamba", "mamba2"])
def test_outputs_are_those_of_this_machine(
    steps: Path, kind: str, state_dtype: torch.dtype | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options = {"mamba": {"d_state": 4}, "mamba2": {"d_state": 4, "headdim": 2}}
    module: Any
    if kind in options:
        module = MambaLM(16, WIDTH, 2, kind, **options[kind]).eval()
    else:
        layers = ["gru", "lstm", {"_name_": "lru", "d_state": 5}, {"_name_": "dss", "d_state": 4}]
        module = model() if kind == "stack" else model(layer=layers)
    stepper = module.stepper((1,) if kind in options else (), state_dtype=state_dtype)
    stepper.save(tmp_path / "model.skp")
    x = torch.randn(40, WIDTH)
    command = [QEMU, str(steps), str(tmp_path / "model.skp")]
    ran = subprocess.run(command, input=bytes_of(x), capture_output=True, check=True)
    assert stepper._program is not None
    got = torch.frombuffer(bytearray(ran.stdout), dtype=torch.float32).view(40, -1)
    state = torch.zeros(1, stepper._program.state_size, dtype=state_dtype or torch.float32)
    rows = x if state_dtype is None else x.to(state_dtype)
    want = torch.cat([stepper._program.run(state, row[None]) for row in rows]).float()
    close(got, want, 1e-5 if state_dtype is None else 1e-6)


def test_a_damaged_file_is_refused(steps: Path, tmp_path: Path) -> None:
    (tmp_path / "model.skp").write_bytes(b"no program")
    ran = subprocess.run([QEMU, str(steps), str(tmp_path / "model.skp")], input=b"", check=False)
    assert ran.returncode == 2  # SEQUENCE_STREAM_NOT_A_PROGRAM


def test_its_vectors_are_neons(steps: Path) -> None:
    """The recurrence and the linear maps run on fused multiplications of four numbers."""
    command = ["aarch64-linux-gnu-objdump", "-d", str(steps.parent / "cpu.o")]
    listing = subprocess.check_output(command, text=True)
    assert sum("fmla" in line and ".4s" in line for line in listing.splitlines()) > 50
