"""Some seconds of `make fuzz`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tools import cpp_compiler

from ..test_stepper import native
from .fuzz.build import built, write_seeds


@native
def test_hostile_programs_do_no_harm(tmp_path: Path) -> None:
    """Of programs made of ours by changing them, many run and none reads or writes where it must not."""
    compiler = cpp_compiler.find()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    seeds = [str(path) for path in write_seeds(tmp_path)]
    command = [
        str(built(compiler, libfuzzer=False)),
        "1000000",
        "3",
        "0",
        str(tmp_path / "finding.skp"),
        *seeds,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) runs, (\d+) opened, no finding\n", done.stdout)
    assert said is not None
    runs, opened = map(int, said.groups())
    assert runs > 500
    assert opened > runs // 10
