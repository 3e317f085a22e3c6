"""Emulator and PTX find each fault planted in faults.cu, say where, and pass the kernel without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import ptx

from . import Kernels, skip_reason

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

# kernel: what the message says after "<kernel>: block (b,0,0) thread (t,0,0): "
IN_CHECK_MODE = {
    "global_read_past_end": "out-of-bounds read of 4 bytes, 4 bytes past the end of x at faults.cu:",
    "global_write_before_begin": "out-of-bounds write of 4 bytes, 4 bytes before y at faults.cu:",
    "static_shared_past_end": "out-of-bounds read of 4 bytes, 4 bytes past the end of shared tile at faults",
    "dynamic_shared_past_end": "out-of-bounds write of 4 bytes, 4 bytes past the end of shared dynamic",
    "unwritten_shared": r"read of unwritten shared memory shared tile\+20 at faults.cu:",
    "missing_barrier": r"(race on|read of unwritten shared memory) shared tile\+\d+",
    "missing_second_barrier": r"race on shared tile\+\d+: read at faults.cu:\d+ and write by block",
    "missing_warp_sync": r"(race on|read of unwritten shared memory) shared tile\+\d+",
    "race_between_blocks": r"race on y\+\d+: read at faults.cu:\d+ and write by block \(\d,0,0\) thread",
}
IN_ANY_MODE = {
    "barrier_in_a_branch": r"barrier divergence: waits at faults.cu:\d+ while thread \(0,0,0\) waits at",
    "barrier_after_exit": r"barrier divergence: (exited before the barrier at|waits at) faults.cu:",
    "barrier_against_shuffle": r"(warp divergence: waits at the collective at faults.cu:\d+ for lanes at a|"
    r"barrier divergence: waits at faults.cu:\d+ while other lanes of its warp do not)",
    "shuffle_by_half_a_warp": r"warp divergence: waits at the collective at faults.cu:\d+( \(\S+\))? for lanes that",
    "unrounded_tf32": r"mma at faults.cu:\d+( \(\S+\))?: a tf32 operand was not rounded",
}
# What schedules and poison alone find, by a wrong result: (kernel, order that shows it).
BY_RESULT = {
    "unwritten_shared": "forward",
    "missing_barrier": "forward",
    "missing_second_barrier": "skewed",
    "missing_warp_sync": "random",
}
ONE_WARP = ("barrier_against_shuffle", "shuffle_by_half_a_warp", "unrounded_tf32")
ORDERS = ("forward", "reverse", "random", "skewed")


NVCC = pytest.mark.skipif(ptx.skip_reason() is not None, reason=str(ptx.skip_reason()))
#: A PTX machine knows no atomics, and runs the lanes of a warp in lockstep.
NOT_IN_PTX = {
    "race_between_blocks": "has an atomic addition",
    "missing_warp_sync": "gives the right result in lockstep",
}


@pytest.fixture(scope="module", params=[Kernels, pytest.param(ptx.PtxKernels, marks=NVCC)])
def kind(request: pytest.FixtureRequest) -> type[Kernels]:
    return request.param


@pytest.fixture(scope="module")
def checked(kind: type[Kernels]) -> Kernels:
    return kind("tests/cuda_emulator/faults.cu", check=True)


@pytest.fixture(scope="module")
def plain(kind: type[Kernels]) -> Kernels:
    return kind("tests/cuda_emulator/faults.cu")


@pytest.fixture
def kernel(request: pytest.FixtureRequest, kind: type[Kernels]) -> str:
    by_result = request.function is test_schedules_and_poison_change_the_result_of_a_fault
    if (
        kind is ptx.PtxKernels
        and request.param in NOT_IN_PTX
        and (by_result or request.param != "missing_warp_sync")
    ):
        pytest.skip(f"{request.param} {NOT_IN_PTX[request.param]}")
    return request.param


def run(kernels: Kernels, kernel: str, *, fault: bool, **options: Any) -> torch.Tensor:
    n = 32 if kernel in ONE_WARP else 64
    blocks = 2 if kernel == "race_between_blocks" else 1
    around = torch.arange(3.0 * n * blocks) / 7 + 1  # a fault in plain mode stays inside this memory
    x, y = around[n * blocks : 2 * n * blocks], torch.zeros(3 * n * blocks)[n * blocks : 2 * n * blocks]
    kernels.run(kernel, {"x": x, "y": y, "n": n, "blocks": blocks, "fault": int(fault)}, **options)
    return y


@pytest.mark.parametrize("kernel", [*IN_CHECK_MODE, *IN_ANY_MODE], indirect=True)
def test_finds_the_planted_fault(checked: Kernels, kernel: str) -> None:
    message = {**IN_CHECK_MODE, **IN_ANY_MODE}[kernel]
    with pytest.raises(RuntimeError, match=rf"^{kernel}: block \(\d,0,0\) thread \(\d+,0,0\): {message}"):
        run(checked, kernel, fault=True)


@pytest.mark.parametrize("kernel", IN_ANY_MODE, indirect=True)
def test_finds_divergence_without_check_mode(plain: Kernels, kernel: str) -> None:
    with pytest.raises(
        RuntimeError, match=rf"^{kernel}: block \(\d,0,0\) thread \(\d+,0,0\): {IN_ANY_MODE[kernel]}"
    ):
        run(plain, kernel, fault=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", [*IN_CHECK_MODE, *IN_ANY_MODE], indirect=True)
def test_passes_the_kernel_without_the_fault(
    checked: Kernels, plain: Kernels, kernel: str, order: str
) -> None:
    expected = run(plain, kernel, fault=False)
    torch.testing.assert_close(run(checked, kernel, fault=False, order=order, seed=1), expected)


@pytest.mark.parametrize("kernel", BY_RESULT, indirect=True)
def test_schedules_and_poison_change_the_result_of_a_fault(plain: Kernels, kernel: str) -> None:
    expected = run(plain, kernel, fault=False)
    actual = run(plain, kernel, fault=True, order=BY_RESULT[kernel])
    assert not torch.equal(actual, expected)


def test_refuses_a_launch_that_a_device_would_refuse(plain: Kernels) -> None:
    x = torch.zeros(2048)
    with pytest.raises(RuntimeError, match=r"too_many_threads: (launch rule gives )?a bad block size, 2048"):
        plain.run("too_many_threads", {"x": x, "y": x, "n": 2048, "blocks": 1, "fault": 0})


def test_a_fault_leaves_the_emulator_usable(checked: Kernels) -> None:
    with pytest.raises(RuntimeError, match="barrier divergence"):
        run(checked, "barrier_in_a_branch", fault=True)
    run(checked, "barrier_in_a_branch", fault=False)
