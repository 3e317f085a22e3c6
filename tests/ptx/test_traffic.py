"""What a launch moves, counted: sectors of global memory, passes and conflicts of the banks of shared memory."""

from __future__ import annotations

import numpy as np
import pytest

from .file import File, Traffic
from .machine import emulator

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

TEXT = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u32 step) {
  .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p;
  .shared .align 16 .b8 tile[8192];
  ld.param.u64 %rd1, [x]; ld.param.u32 %r2, [step]; mov.u32 %r1, %tid.x; mul.lo.s32 %r3, %r1, %r2;
  mul.wide.s32 %rd2, %r3, 4; add.s64 %rd3, %rd1, %rd2;
  mov.u32 %r4, tile; shl.b32 %r5, %r3, 2; add.s32 %r5, %r5, %r4; mov.u32 %r6, 0;
  """
GLOBAL, SHARED = "ld.global.b32 %r6, [%rd3];", "st.shared.b32 [%r5], %r6;"


def moved(statement: str, step: int) -> dict[str, int]:
    x, traffic = np.zeros(4096, dtype=np.uint32), Traffic()
    x = x[-(x.ctypes.data // 4) % 8 :]  # from a sector's begin
    params = np.array([x.ctypes.data, step], dtype=np.uint64)
    File(f"{TEXT}{statement} ret; }}").run("k", params.ctypes.data, (1, 1, 1), (32, 1, 1), traffic=traffic)
    assert traffic.block_sectors == traffic.sectors  # no two accesses
    names = [name for name, _ in Traffic._fields_ if name != "block_sectors"]
    return {name: getattr(traffic, name) for name in names if getattr(traffic, name)}


@pytest.mark.parametrize(("step", "sectors"), [(0, 1), (1, 4), (2, 8), (8, 32), (9, 32)])
def test_sectors(step: int, sectors: int) -> None:
    want = {"global_read_bytes": 128, "global_accesses": 1, "sectors": sectors}
    assert moved(GLOBAL, step) == want
    want["global_written_bytes"] = want.pop("global_read_bytes")
    assert moved("st.global.b32 [%rd3], %r6;", step) == want


def test_only_the_lanes_that_take_part() -> None:
    want = {"global_read_bytes": 20, "global_accesses": 1, "sectors": 1}
    assert moved("setp.lt.u32 %p, %r1, 5; @%p " + GLOBAL, 1) == want


@pytest.mark.parametrize(("step", "passes"), [(0, 1), (1, 1), (2, 2), (4, 4), (32, 32), (33, 1)])
def test_conflicts_of_words(step: int, passes: int) -> None:
    conflicts = {"bank_conflicts": passes - 1} if passes > 1 else {}
    assert moved(SHARED, step) == {"shared_bytes": 128, "shared_passes": passes, **conflicts}


@pytest.mark.parametrize(("step", "passes"), [(2, 2), (4, 4), (32, 32)])
def test_conflicts_of_pairs_of_words(step: int, passes: int) -> None:
    """Half a warp at a time."""
    conflicts = {"bank_conflicts": passes - 2} if passes > 2 else {}
    found = moved("st.shared.v2.b32 [%r5], {%r6, %r6};", step)
    assert found == {"shared_bytes": 256, "shared_passes": passes, **conflicts}


def test_a_copy_reads_one_and_writes_the_other() -> None:
    found = moved("cp.async.ca.shared.global [%r5], [%rd3], 4, 4; cp.async.commit_group;", 2)
    read = {"global_read_bytes": 128, "global_accesses": 1, "sectors": 8}
    assert found == {**read, "shared_bytes": 128, "shared_passes": 2, "bank_conflicts": 1}


def test_rows_of_matrices() -> None:
    """Eight rows of 16 bytes a pass; 64 bytes apart, every other one is in the same banks."""
    load = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r6, %r7}, [%r5];"
    assert moved(load, 4) == {"shared_bytes": 512, "shared_passes": 4}
    assert moved(load, 16) == {"shared_bytes": 512, "shared_passes": 16, "bank_conflicts": 12}
