"""How long a block waits: what depends on what, loads that are on their way together, copies, barriers, samples."""

from __future__ import annotations

import numpy as np
import pytest

from .file import File, Latencies, Timing, Traffic
from .machine import emulator

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

TEXT = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x) {
  .reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .pred %p;
  .shared .align 16 .b8 tile[8192];
  ld.param.u64 %rd1, [x]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 16; add.s64 %rd3, %rd1, %rd2;
  mov.u32 %r4, tile; shl.b32 %r5, %r1, 4; add.s32 %r5, %r5, %r4; mov.u32 %r2, 0;
  bra.uni start;
start:
"""
GLOBAL, SHARED, BARRIER, ADD = 1000, 100, 50, 4
LOAD = "ld.global.b32 %r{}, [%rd3];"
COPY = "cp.async.cg.shared.global [%r5], [%rd3], 16, 16; cp.async.commit_group;"


def timed(body: str, threads: int = 32, blocks: int = 1, sample: int = 0) -> tuple[Timing, Traffic]:
    x = np.zeros(4096, dtype=np.uint32)
    x = x[-(x.ctypes.data // 4) % 8 :]  # from a sector's begin
    params = np.array([x.ctypes.data], dtype=np.uint64)
    latencies = Latencies(
        arithmetic=ADD, special=20, tensor=30, shared=SHARED, global_=GLOBAL, barrier=BARRIER
    )
    timing, traffic = Timing(latencies, sample), Traffic()
    file = File(f"{TEXT}{body} ret; }}")
    file.run("k", params.ctypes.data, (blocks, 1, 1), (threads, 1, 1), timing=timing, traffic=traffic)
    return timing, traffic


def cycles(body: str, threads: int = 32) -> int:
    """Beyond what the addresses take."""
    return timed(body, threads)[0].cycles - timed("", threads)[0].cycles


def test_a_chain_of_sums_waits_for_each() -> None:
    chain = "add.s32 %r2, %r2, 1; add.s32 %r2, %r2, 1; add.s32 %r2, %r2, 1; add.s32 %r3, %r2, 1;"
    assert (
        cycles(chain) == 3 * ADD - 1
    )  # three are waited for; the kernel without any ends with a cycle of its own
    assert cycles("add.s32 %r2, %r1, 1; add.s32 %r3, %r1, 1; add.s32 %r4, %r1, 1;") == 3


def test_loads_that_nobody_needs_yet_are_on_their_way_together() -> None:
    use = "add.s32 %r7, %r2, %r3;"
    together = cycles(f"{LOAD.format(2)} {LOAD.format(3)} {use}")
    one_by_one = cycles(f"{LOAD.format(2)} add.s32 %r6, %r2, 1; bra.uni on; on: {LOAD.format(3)} {use}")
    assert GLOBAL < together < GLOBAL + 10
    assert 2 * GLOBAL < one_by_one < 2 * GLOBAL + 10


def test_a_load_may_be_needed_behind_a_branch() -> None:
    assert (
        GLOBAL
        < cycles(f"{LOAD.format(2)} bra.uni on; on: {LOAD.format(3)} add.s32 %r7, %r2, %r3;")
        < GLOBAL + 20
    )


def test_copies_are_waited_for_by_groups() -> None:
    two = f"{COPY} {COPY.replace('%r5', '%r5+1024')}"
    assert GLOBAL < cycles(f"{two} cp.async.wait_group 1;") < GLOBAL + 10
    late = f"{COPY} {LOAD.format(2)} add.s32 %r6, %r2, 1; bra.uni on; on: {COPY.replace('%r5', '%r5+1024')}"
    assert cycles(f"{late} cp.async.wait_group 1;") < GLOBAL + 20
    assert 2 * GLOBAL < cycles(f"{late} cp.async.wait_group 0;") < 2 * GLOBAL + 20


def test_a_barrier_waits_for_the_slowest_warp() -> None:
    slow = f"setp.gt.u32 %p, %r1, 31; @%p bra on; {LOAD.format(2)} add.s32 %r6, %r2, 1; on: bar.sync 0;"
    found = cycles(f"{slow} {LOAD.format(3)} add.s32 %r7, %r3, 1;", 64)
    assert 2 * GLOBAL + BARRIER < found < 2 * GLOBAL + BARRIER + 40


def test_some_blocks_stand_for_all() -> None:
    timing, traffic = timed(f"bar.sync 0; {LOAD.format(2)}", blocks=10, sample=3)
    assert timing.blocks == 3
    assert traffic.global_read_bytes == 3 * 128
    assert traffic.barriers == 3
    assert timed(LOAD.format(2), blocks=2, sample=3)[0].blocks == 2


def test_a_block_counts_a_sector_once() -> None:
    _, traffic = timed(f"{LOAD.format(2)} {LOAD.format(3)} st.global.b32 [%rd3], %r2;", blocks=2)
    assert traffic.sectors == 2 * 3 * 16
    assert traffic.block_sectors == 2 * 2 * 16
