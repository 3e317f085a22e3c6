"""The fuzzer: the C library's sources and its target, compiled with sanitizers; and the files that it begins with."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sequence_kernels import GRU, LRU, LSTM, S4D, CausalConv, MambaLM, SequenceModel
from sequence_kernels.stepping.program import Program
from sequence_kernels.stepping.registers import Append, Close, Multiply, Open
from sequence_kernels.stepping.saved import save
from sequence_kernels.stepping.translation import translated
from tools import cpp_compiler

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "fuzz"

#: -Og: at -O1 the sanitizers take a compiler half a minute for each instruction set.
FLAGS = "-std=c++17 -Og -g1 -fno-math-errno -ffp-contract=fast -Wno-psabi -fno-sanitize-recover=all"
SANITIZERS = "address,undefined"


def built(compiler: str, libfuzzer: bool) -> Path:
    """The fuzzer, compiled anew where a source has changed; ``libfuzzer``: clang's, instead of loop.cpp."""
    sanitizers = f"-fsanitize={SANITIZERS}" + (",fuzzer-no-link" if libfuzzer else "")
    base = [*shlex.split(f"{compiler} {FLAGS} {sanitizers}"), f"-I{ROOT / 'csrc'}"]
    stream = [ROOT / "csrc/stream/stream.cpp", ROOT / "csrc/runtime/cpu_isa.cpp", HERE / "target.cpp"]
    parts = {
        path.stem: [*base, "-c", str(path)] for path in (*stream, *([] if libfuzzer else [HERE / "loop.cpp"]))
    }
    interpreter = str(ROOT / "csrc/step_program/cpu.cpp")
    for name, flags in cpp_compiler.instruction_sets(compiler).items():
        parts[name] = [*base, *flags.split(), f"-DSEQUENCE_KERNELS_ISA={name}", "-c", interpreter]
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted([*HERE.glob("*.*"), *(ROOT / "csrc").rglob("*.h"), *stream, Path(interpreter)]):
        digest.update(path.read_bytes())
    folder = BUILD / digest.hexdigest()[:16]
    program = folder / "fuzz"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)

    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")

    objects = [str(folder / f"{name}.o") for name in parts]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, ([*part, "-o", to] for part, to in zip(parts.values(), objects, strict=True))))
    linked = f"-fsanitize={SANITIZERS}" + (",fuzzer" if libfuzzer else "")
    run([*shlex.split(compiler), linked, *objects, "-o", str(program)])
    return program


def write_seeds(folder: Path) -> list[Path]:
    """Small programs with every instruction, storage and precision among them."""
    torch.manual_seed(0)
    layers: list[Any] = [
        {"_name_": "s4d", "d_state": 6, "channels": 2},
        {"_name_": "ff", "activation": "tanh"},
    ]
    low_rank = {"_name_": "s4", "d_state": 4, "measure": "legt", "rank": 2, "activation": "silu"}
    stack = SequenceModel(3, layer=[*layers, low_rank], residual="R", norm="layer").eval()
    mamba2 = {"d_state": 2, "headdim": 2, "ngroups": 2, "norm_before_gate": True}
    steppers = [
        stack.stepper(),
        S4D(2, 2).eval().stepper(state_dtype=torch.float64),
        CausalConv(3, kernel_size=4, activation="relu").eval().stepper(),
        LRU(2, 3).eval().stepper(),
        GRU(2, 3).eval().stepper(),
        LSTM(2, 3, 2).eval().stepper(),
        MambaLM(9, 3, 1, "mamba", d_state=2).eval().stepper(),
        MambaLM(9, 4, 1, "mamba2", tie_embeddings=False, **mamba2).eval().stepper(),
    ]
    paths = []
    for i, stepper in enumerate(steppers):
        for weights in ("float32", "bfloat16"):
            paths.append(folder / f"{i}-{weights}.skp")
            stepper.save(paths[-1], weights=weights)
    paths.append(folder / "kept.skp")
    kept = translated([Open(1), Append(0, 3), Open(1), Multiply(0), Close(2)], 3, torch.float32)
    assert isinstance(kept, Program)
    save(paths[-1], kept, 3, "float32", None)
    return paths
