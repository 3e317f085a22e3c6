"""Every GPU kernel compiles for every architecture within its budget; a kernel that starts to spill fails."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import triton_kernels

from . import budget, nvcc
from .__main__ import measure_triton
from .triton_launches import LAUNCHES, TARGETS

HERE = Path(__file__).parent
FAST_ARCHITECTURES, FAST_TARGETS = ("sm_80", "sm_90"), ("cuda 90", "hip gfx942")

needs_nvcc = pytest.mark.skipif(nvcc.skip_reason() is not None, reason=str(nvcc.skip_reason()))
needs_triton = pytest.mark.skipif(
    triton_kernels.skip_reason() is not None, reason=str(triton_kernels.skip_reason())
)


def assert_in_budget(compiler: str, version: str, measured: budget.Measurement) -> None:
    allowed = budget.read()
    same_tool = allowed["tools"][compiler] == version
    complaints = budget.complaints(allowed[compiler], measured, same_tool=same_tool)
    assert not complaints, "\n".join(complaints)


@needs_nvcc
@pytest.mark.checks("AOT budget", of="*/cuda")
@pytest.mark.parametrize("architecture", FAST_ARCHITECTURES)
def test_cuda_kernels(architecture: str) -> None:
    assert_in_budget("nvcc", nvcc.version(), nvcc.measure((architecture,)))


@needs_nvcc
@pytest.mark.thorough
@pytest.mark.parametrize("architecture", sorted({*nvcc.ARCHITECTURES} - {*FAST_ARCHITECTURES}))
def test_cuda_kernels_on_the_other_architectures(architecture: str) -> None:
    assert_in_budget("nvcc", nvcc.version(), nvcc.measure((architecture,)))


@needs_triton
@pytest.mark.checks("AOT budget", of="*/triton")
def test_triton_kernels() -> None:
    assert_in_budget("triton", *measure_triton(FAST_TARGETS))


@needs_triton
@pytest.mark.thorough
def test_triton_kernels_on_the_other_targets() -> None:
    assert_in_budget("triton", *measure_triton(tuple(sorted({*TARGETS} - {*FAST_TARGETS}))))


def triton_kernel_names() -> Iterator[str]:
    for path in sorted((nvcc.ROOT / "sequence_kernels" / "ops").glob("*/triton.py")):
        yield from re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)


def test_the_budget_has_every_kernel_and_target() -> None:
    allowed = budget.read()
    assert set(allowed["nvcc"]) == {*nvcc.ARCHITECTURES}
    assert set(allowed["triton"]) == {*TARGETS}
    for kernels in allowed["triton"].values():
        assert {name.split(" ")[0] for name in kernels} == {*triton_kernel_names()}
    sources = "\n".join(path.read_text() for path in (nvcc.ROOT / "csrc").glob("*/*.cu"))
    for kernels in allowed["nvcc"].values():
        assert set(kernels) == {*re.findall(r"^KERNEL\((\w+),", sources, re.MULTILINE)}


@needs_triton
def test_every_launch_function_exists() -> None:
    for module, function, _ in LAUNCHES.values():
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
