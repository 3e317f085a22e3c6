"""Every GPU kernel compiles for every architecture within its budget; a kernel that starts to spill fails."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from . import budget, gate, nvcc, triton_units
from .__main__ import check
from .digest import code
from .triton_launches import LAUNCHES

HERE = Path(__file__).parent

needs_nvcc = pytest.mark.skipif(nvcc.skip_reason() is not None, reason=str(nvcc.skip_reason()))
needs_triton = pytest.mark.skipif(
    triton_units.skip_reason() is not None, reason=str(triton_units.skip_reason())
)


def assert_in_budget(compiler: str, targets: tuple[str, ...], *, everything: bool) -> None:
    complaints = gate.complaints(compiler, targets, everything=everything)
    assert not complaints, "\n".join(complaints)


@needs_nvcc
@pytest.mark.checks("AOT budget", of="*/cuda")
def test_cuda_kernels_that_changed() -> None:
    assert_in_budget("nvcc", nvcc.FAST_TARGETS, everything=False)


@needs_nvcc
@pytest.mark.thorough
@pytest.mark.parametrize("architecture", nvcc.TARGETS)
def test_cuda_kernels(architecture: str) -> None:
    assert_in_budget("nvcc", (architecture,), everything=True)


@needs_triton
@pytest.mark.checks("AOT budget", of="*/triton")
def test_triton_kernels_that_changed() -> None:
    assert_in_budget("triton", triton_units.FAST_TARGETS, everything=False)


@needs_triton
@pytest.mark.thorough
def test_triton_kernels() -> None:
    assert_in_budget("triton", triton_units.TARGETS, everything=True)


def test_the_budget_has_every_kernel_and_target() -> None:
    allowed = budget.read()
    for name, compiler in gate.COMPILERS.items():
        assert {*allowed[name]} == {*allowed["digests"][name]} == {*compiler.units(compiler.TARGETS)}
    for unit, kernels in allowed["triton"].items():
        module = triton_units.OPS / unit.rpartition(" ")[2] / "triton.py"
        names = re.findall(r"^def (\w+_kernel)\(", module.read_text(), re.MULTILINE)
        assert {name.split(" ")[0] for name in kernels} == {*names}
        launches = {label for label, source, *_ in LAUNCHES if source.split(".")[-2] == module.parent.name}
        assert {*re.findall(r"\[(.+?)\]", " ".join(kernels))} == launches
    for unit, kernels in allowed["nvcc"].items():
        source = (nvcc.CSRC / unit.split()[1]).read_text()
        assert {*kernels} == {*re.findall(r"^KERNEL\((\w+),", source, re.MULTILINE)}


def test_the_record_is_of_the_code_as_it_stands() -> None:
    """Also where there is no compiler, which a digest does not need."""
    assert [complaint for name in gate.COMPILERS for complaint in gate.stale(name)] == []


def test_a_stale_record_is_seen_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for compiler in (nvcc, triton_units):
        monkeypatch.setattr(compiler, "skip_reason", lambda: "not here")
        monkeypatch.setattr(compiler, "version", lambda: pytest.fail("asked a compiler"))
    assert check([*gate.COMPILERS], everywhere=True) == 0
    monkeypatch.setattr(nvcc, "CSRC", Path(shutil.copytree(nvcc.CSRC, tmp_path / "csrc")))
    header = nvcc.CSRC / "ssm_step" / "cuda.h"
    header.write_text(header.read_text().replace("int64_t rows", "int32_t rows"))
    assert len(gate.stale("nvcc")) == len(nvcc.TARGETS)
    capsys.readouterr()
    assert check([*gate.COMPILERS], everywhere=False) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        "nvcc: nothing was compiled: not here",
        f"  the code of sm_75 ssm_step/cuda.cu is not what was measured; {budget.REGENERATE}",
    ]
    assert printed[-1] == "triton: nothing was compiled: not here"


def test_a_digest_is_of_all_the_code_that_a_unit_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte of code changes it, in a header of a header too; a comment or another op's file does not."""
    monkeypatch.setattr(nvcc, "CSRC", Path(shutil.copytree(nvcc.CSRC, tmp_path / "csrc")))
    monkeypatch.setattr(triton_units, "OPS", Path(shutil.copytree(triton_units.OPS, tmp_path / "ops")))

    def changed(compiler: gate.Compiler, file: Path, old: str, new: str) -> set[str]:
        """The ops of which a unit's digest is another after the edit."""
        units = compiler.units(compiler.TARGETS[:1])
        before = {unit: compiler.digest(unit, "1.0") for unit in units}
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        after = {unit: compiler.digest(unit, "1.0") for unit in units}
        file.write_text(text)
        return {unit.split()[-1].split("/")[0] for unit in units if before[unit] != after[unit]}

    csrc, of_triton = nvcc.CSRC, triton_units.OPS
    assert changed(nvcc, csrc / "ssm_step" / "cuda.h", "int64_t rows", "int32_t rows") == {"ssm_step"}
    assert changed(nvcc, csrc / "common" / "kernel.cuh", "type* const", "type*") == {
        path.parent.name for path in csrc.glob("*/*.cu")
    }
    assert changed(nvcc, csrc / "common" / "warp_product.cuh", "#pragma", "// Why.\n#pragma") == set()
    assert changed(nvcc, csrc / "ssm_conv" / "cpu.cpp", "int64_t", "int32_t") == set()
    assert changed(triton_units, of_triton / "cauchy" / "triton.py", "tl.sum", "tl.max") == {"cauchy"}
    everything = {path.parent.name for path in of_triton.glob("*/triton.py")}
    assert (
        changed(triton_units, of_triton / "checks.py", "HALF", "HALVES") == everything
    )  # by way of layouts.py
    assert changed(triton_units, of_triton / "ssm_step" / "kernels.py", "plain(", "plan(") == {"ssm_step"}
    assert changed(triton_units, of_triton / "dispatch.py", "def ", "def a") == set()
    assert (
        changed(triton_units, of_triton / "cauchy" / "triton.py", "import torch\n", "import torch  # it\n")
        == set()
    )
    for compiler in gate.COMPILERS.values():
        one, other = compiler.units(compiler.TARGETS)[:: len(compiler.units(compiler.TARGETS[:1]))][:2]
        digests = {compiler.digest(one, "1.0"), compiler.digest(one, "1.1"), compiler.digest(other, "1.0")}
        assert len(digests) == 3


def test_imports_are_followed_however_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_units, "OPS", tmp_path)
    for name, text in {
        "op/triton.py": """
            import torch
            from ... import internals
            from . import (
                helper,
                reference as plain_torch,
            )
            def launch():
                from ..package.module import function
            """,
        "op/helper.py": "from ..layouts import plain; from ..dispatch import choose",
        "op/reference.py": "from . import helper",
        "op/unused.py": "",
        "op/__init__.py": "from . import unused",
        "package/module.py": "from .. import other",
        "package/__init__.py": "",
        "other/__init__.py": "",
        "layouts.py": "from typing import Any",
        "dispatch.py": "from . import unused",
        "unused.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    found = [
        str(path.relative_to(tmp_path)) for path in triton_units.followed(tmp_path / "op/triton.py", set())
    ]
    assert sorted(found) == sorted(
        [
            "op/triton.py",
            "op/helper.py",
            "op/reference.py",
            "layouts.py",
            "package/module.py",
            "other/__init__.py",
        ]
    )


def test_comments_are_left_out_and_strings_kept(tmp_path: Path) -> None:
    for name, text, kept in (
        ("one.cuh", 'a("//", "\\"/*");  // b\n\n/* c\n"d" */ e;\n', 'a("//", "\\"/*");\n e;'),
        ("one.py", 'a = \'#\', "#\'"  # b\n\n# c\n"""#\n"""\n', 'a = \'#\', "#\'"\n"""#\n"""'),
    ):
        (tmp_path / name).write_text(text)
        assert code(tmp_path / name) == kept


class Toy:
    """A compiler of two units, which are files."""

    TARGETS = FAST_TARGETS = ("toy",)

    def __init__(self, folder: Path) -> None:
        self.folder, self.compiled, self.number = folder, list[str](), "1.0"

    def version(self) -> str:
        return self.number

    def units(self, targets: tuple[str, ...]) -> list[str]:
        return [f"toy {path.name}" for path in sorted(self.folder.iterdir())]

    def digest(self, unit: str, version: str) -> str:
        return version + (self.folder / unit.split()[1]).read_text()

    def measure(self, units: list[str]) -> budget.Measurement:
        self.compiled += units
        used = {"registers": 40, "spill_bytes": 0, "shared_bytes": 0}
        return {unit: {"kernel": {**used, "registers": int(self.digest(unit, "")[-2:])}} for unit in units}


def test_what_was_measured_as_it_stands_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sources := tmp_path / "sources").mkdir()
    for name in ("one", "two"):
        (sources / name).write_text("40")
    toy = Toy(sources)
    monkeypatch.setattr(gate, "COMPILERS", {"toy": toy})
    monkeypatch.setattr(budget, "PATH", tmp_path / "budget.json")
    budget.PATH.write_text(json.dumps({"tools": {}, "toy": {}, "digests": {"toy": {}}}))

    def complaints(**more: bool) -> list[str]:
        toy.compiled.clear()
        return [text.partition(";")[0] for text in gate.complaints("toy", ("toy",), **more)]

    gate.write(everything=False)
    assert (complaints(), toy.compiled) == ([], [])
    assert (complaints(everything=True), toy.compiled) == ([], ["toy one", "toy two"])

    (sources / "two").write_text("a 40")
    stale = "toy two is within its budget, but its code is not what was measured"
    assert (complaints(), toy.compiled) == ([stale], ["toy two"])
    (sources / "two").write_text("41")
    assert complaints() == ["kernel (toy two): 41 registers, budget 40"]
    toy.number = "2.0"  # of another compiler spills alone count
    assert (complaints(), toy.compiled) == ([], ["toy one", "toy two"])
    toy.number = "1.0"

    toy.compiled.clear()
    (sources / "three").write_text("50")
    (sources / "one").unlink()
    gate.write(everything=False)
    assert toy.compiled == ["toy three", "toy two"]
    assert {unit: used["kernel"]["registers"] for unit, used in budget.read()["toy"].items()} == {
        "toy three": 50,
        "toy two": 41,
    }
    assert (complaints(), toy.compiled) == ([], [])
    gate.write(everything=True)
    assert toy.compiled == ["toy three", "toy two"]


@needs_triton
def test_every_launch_function_exists() -> None:
    for _, module, function, _ in LAUNCHES:
        assert callable(getattr(importlib.import_module(module), function))


def test_no_kernel_of_the_budget_spills() -> None:
    allowed = budget.read()
    for compiler in ("nvcc", "triton"):
        for target, kernels in allowed[compiler].items():
            for name, used in kernels.items():
                assert used["spill_bytes"] == 0, f"{name} ({target})"


@needs_nvcc
def test_sees_a_kernel_that_spills() -> None:
    measured = {"sm_80": nvcc.compile_file(HERE / "spilling.cu", "sm_80")}
    assert measured["sm_80"]["spilling"]["spill_bytes"] > 0
    allowed = {"sm_80": {"spilling": {"registers": 64, "spill_bytes": 0, "shared_bytes": 0}}}
    (complaint,) = budget.complaints(allowed, measured, same_tool=False)
    assert re.match(
        r"spilling \(sm_80\): \d+ spill bytes, budget 0; run `python -m tests.aot write`", complaint
    )


#: A launch that has every register, with 32 of them.
PLANTED = """
import importlib, json
from tests.aot import triton_compiler
kernels = importlib.import_module("sequence_kernels.ops.cauchy.triton")
kernels.every_register = lambda: {"maxnreg": 32}
triton_compiler.LAUNCHES = [launch for launch in triton_compiler.LAUNCHES if launch[0] == "1 sets, plain f32"]
print(json.dumps(triton_compiler.measure(["cuda 90 cauchy"])))
"""


@needs_triton
@pytest.mark.thorough  # compiles for 17 s
def test_sees_a_triton_kernel_that_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any Triton: the oldest is asked for nothing else."""
    measured = triton_units.measured_by("-c", PLANTED)
    monkeypatch.setattr(triton_units, "version", lambda: "another")
    monkeypatch.setattr(triton_units, "measure", lambda units: measured)
    (complaint,) = [text for text in gate.complaints("triton", ("cuda 90",)) if "spill" in text]
    assert re.match(
        r"cauchy_kernel \[1 sets, plain f32\] \(cuda 90 cauchy\): \d\d+ spill bytes, budget 0", complaint
    )


def test_complains_of_missing_gone_and_larger_kernels() -> None:
    used = {"registers": 40, "spill_bytes": 0, "shared_bytes": 128}
    allowed = {"sm_80": {"gone": used, "kernel": used}}
    measured = {"sm_80": {"kernel": {**used, "registers": 41, "shared_bytes": 256}, "new": used}}
    complaints = budget.complaints(allowed, measured, same_tool=True)
    assert [c.split(";")[0] for c in complaints] == [
        "gone (sm_80) is in the budget but gone",
        "kernel (sm_80): 256 shared bytes, budget 128",
        "kernel (sm_80): 41 registers, budget 40",
        "new (sm_80) has no budget",
    ]
    assert len(budget.complaints(allowed, measured, same_tool=False)) == 2


@needs_nvcc
def test_refuses_a_file_that_does_not_compile(tmp_path: Path) -> None:
    (tmp_path / "bad.cu").write_text('extern "C" __global__ void bad() { undeclared(); }')
    with pytest.raises(RuntimeError, match=r"nvcc refused bad.cu for sm_90:(.|\n)*undeclared"):
        nvcc.compile_file(tmp_path / "bad.cu", "sm_90")
