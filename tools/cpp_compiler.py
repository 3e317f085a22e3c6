"""The C++ compiler: which one, for what machine, and with which instruction sets kernels are compiled."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

#: Of each machine, the options that ask for a set; see docs/build.md. Others have the generic one alone.
INSTRUCTION_SETS = {
    "x86_64": {
        "generic": "",
        "avx2": "-mavx2 -mfma",
        "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512",
    },
}
#: The same for kernels that multiply bfloat16 numbers.
BFLOAT16_SETS = {"x86_64": {"avx512_bf16": INSTRUCTION_SETS["x86_64"]["avx512"] + " -mavx512bf16"}}


def find() -> str | None:
    """The command to use, as the environment's CXX gives it; None if there is none. A CXX that is not there ends it."""
    if asked := os.environ.get("CXX", "").strip():
        if shutil.which(shlex.split(asked)[0]) is None:
            sys.exit(f"CXX={asked} is no command that is installed; install it, or leave CXX out to take g++")
        return asked
    return next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)


def machine(compiler: str) -> str:
    """What it compiles for, such as x86_64 or aarch64."""
    return subprocess.check_output([*shlex.split(compiler), "-dumpmachine"], text=True).split("-")[0]


def instruction_sets(compiler: str) -> dict[str, str]:
    """The instruction sets of the machine that it compiles for, and the options that ask for each."""
    return INSTRUCTION_SETS.get(machine(compiler), {"generic": ""})


def bfloat16_sets(compiler: str) -> dict[str, str]:
    """The same of what multiplies bfloat16 numbers; none on most machines."""
    return BFLOAT16_SETS.get(machine(compiler), {})
