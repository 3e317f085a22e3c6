"""What only PTX shows, planted one at a time: each is found and named, and the kernel without it passes.

tests/cuda_emulator/test_detectors.py has the faults that the sources show too.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from .file import File
from .machine import emulator

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

#: x and y have an element for each of 2 blocks of 64 threads; where fault is 1, %fault is true.
HEAD = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y, .param .u32 fault) {
  .reg .pred %p<9>; .reg .pred %fault; .reg .b32 %r<99>; .reg .f32 %f<9>; .reg .b64 %rd<9>; .reg .f64 %fd<9>;
  .shared .align 16 .b8 tile[256];
  .loc 1 1 1
  ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.u32 %r9, [fault]; setp.ne.u32 %fault, %r9, 0;
  mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r3, %r2, 64, %r1;
  mad.wide.s32 %rd3, %r3, 4, %rd1; mad.wide.s32 %rd4, %r3, 4, %rd2;
  mov.u32 %r5, tile; mad.lo.s32 %r4, %r1, 4, %r5; and.b32 %r6, %r1, 31;
  mov.u32 %r20, 0; mov.u32 %r21, 0; mov.f32 %f1, 0f00000000;
  ld.global.b32 %r20, [%rd3];
  .loc 1 7 1
"""
TAIL = """
  st.global.b32 [%rd4], %r20;
  ret;
}
.file 1 "/somewhere/sample.cu"
"""
COPY = "cp.async.ca.shared.global [%r4], [%rd3], 4, 4; cp.async.commit_group;"
MMA = """mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1, %f1, %f1, %f1}, {%r21, %r21, %r21, %r21},
  {%r21, %r21}, {%f1, %f1, %f1, %f1};"""
#: What is planted: the statements, and what the message says behind the thread.
FAULTS = {
    "a read before the copy is waited for": (
        f"{COPY} @%fault bra L; cp.async.wait_group 0; L: ld.shared.b32 %r20, [%r4];",
        "read of shared tile+0, to which a cp.async is on its way, at sample.cu:7",
    ),
    "a wait for too few groups": (
        f"{COPY} @%fault bra L; cp.async.wait_group 0; bra M; L: cp.async.wait_group 1; M: ld.shared.b32 %r20, [%r4];",
        "read of shared tile+0, to which a cp.async is on its way, at sample.cu:7",
    ),
    "a copy over what another warp reads": (
        f"""st.shared.b32 [%r4], %r20; bar.sync 0; xor.b32 %r7, %r1, 32; mad.lo.s32 %r7, %r7, 4, %r5;
        ld.shared.b32 %r20, [%r7]; @%fault bra L; bar.sync 0; L: {COPY} cp.async.wait_group 0;""",
        "race on shared tile+0: read at sample.cu:7 and write by block (0,0,0) thread (0,0,0)",
    ),
    "no barrier behind a copy": (
        f"""{COPY} cp.async.wait_group 0; @%fault bra L; bar.sync 0; L: xor.b32 %r7, %r1, 32;
        mad.lo.s32 %r7, %r7, 4, %r5; ld.shared.b32 %r20, [%r7];""",
        "read of unwritten shared memory shared tile+128 at sample.cu:7",
    ),
    "an mma without a lane": (
        f"setp.eq.u32 %p1, %r6, 5; and.pred %p1, %p1, %fault; @%p1 bra L; {MMA} L:",
        "does not take part in the warp's mma at sample.cu:7",
    ),
    "a shuffle without the lanes of its mask": (
        "setp.gt.u32 %p1, %r6, 15; and.pred %p1, %p1, %fault; @%p1 bra L; shfl.sync.bfly.b32 %r20, %r20, 1, 31, -1; L:",
        "warp divergence: waits at the collective at sample.cu:7 for lanes that are not there, thread (16,0,0)",
    ),
    "a shuffle from a lane outside of its mask": (
        """setp.gt.u32 %p1, %r6, 15; @%p1 bra L; selp.b32 %r8, 16, 1, %fault;
        shfl.sync.bfly.b32 %r20, %r20, %r8, 31, 0xffff; L:""",
        "shuffle at sample.cu:7 reads lane 16, which is not taking part",
    ),
    "blocks that write to one place": (
        "mad.wide.s32 %rd5, %r1, 4, %rd2; @%fault st.global.b32 [%rd5], %r3;",
        "race on y+0: write at sample.cu:7 and write by block (0,0,0) thread (0,0,0) with no barrier between",
    ),
    "lanes that write one place": (
        "mov.u32 %r7, %r4; @%fault mov.u32 %r7, tile; st.shared.b32 [%r7], %r1; bar.sync 0;",
        "race on shared tile+0: write at sample.cu:7 and write by block (0,0,0) thread (0,0,0)",
    ),
    "a vector that is not aligned": (
        "mov.u64 %rd5, %rd1; @%fault add.s64 %rd5, %rd1, 4; ld.global.v2.b32 {%r20, %r21}, [%rd5];",
        "misaligned read of 8 bytes in x at sample.cu:7",
    ),
    "an address of nothing": (
        "mov.u64 %rd5, %rd1; @%fault mov.u64 %rd5, 0; ld.global.b32 %r20, [%rd5];",
        "out-of-bounds read of 4 bytes at sample.cu:7",
    ),
    "a shared address beyond all": (
        "st.shared.b32 [%r4], %r20; @%fault ld.shared.b32 %r20, [%r4+1000];",
        "out-of-bounds read of 4 bytes, 748 bytes past the end of shared tile at sample.cu:7",
    ),
    "a loop without an end": ("L: @%fault bra L;", "the launch takes more than 100000 instructions"),
}


def run(statements: str, fault: bool, order: str, seed: int = 0) -> np.ndarray:
    x, y = np.arange(128, dtype=np.uint32), np.zeros(128, dtype=np.uint32)
    params = np.array([x.ctypes.data, y.ctypes.data, fault], dtype=np.uint64)
    buffers = [("x", x.ctypes.data, 512, 4), ("y", y.ctypes.data, 512, 4)]
    file = File(HEAD + statements + TAIL)
    file.run("k", params.ctypes.data, (2, 1, 1), (64, 1, 1), 0, order, seed, buffers, 100000)
    return y


@pytest.mark.parametrize("name", FAULTS)
def test_finds_the_planted_fault(name: str) -> None:
    statements, said = FAULTS[name]
    where = r"^k: block \(\d,0,0\) thread \(\d+,0,0\): "
    with pytest.raises(RuntimeError, match=where + re.escape(said)):
        run(statements, True, "forward")


@pytest.mark.parametrize("order", ["forward", "reverse", "random", "skewed"])
@pytest.mark.parametrize("name", FAULTS)
def test_passes_the_kernel_without_the_fault(name: str, order: str) -> None:
    assert (run(FAULTS[name][0], False, order, 1) == run(FAULTS[name][0], False, "forward")).all()


def test_threads_may_write_the_same_value() -> None:
    run("mov.u32 %r8, 5; st.shared.b32 [tile], %r8; bar.sync 0;", False, "random")


def test_the_address_is_that_of_the_copy_s_beginning_and_the_value_that_of_its_end() -> None:
    """What a cp.async brings is read when it is waited for, which is as late as it may be."""
    late = "st.global.b32 [%rd4], %r1; cp.async.ca.shared.global [%r4], [%rd4], 4, 4; cp.async.commit_group;"
    late += "st.global.b32 [%rd4], %r3; cp.async.wait_group 0; ld.shared.b32 %r20, [%r4];"
    assert (run(late, False, "forward") == np.arange(128)).all()


def test_bytes_that_a_copy_leaves_out_are_zeros() -> None:
    part = "and.b32 %r7, %r1, 1; shl.b32 %r7, %r7, 2; cp.async.ca.shared.global [%r4], [%rd3], 4, %r7;"
    out = run(
        part + "cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %r20, [%r4];", False, "forward"
    )
    assert (out == np.where(np.arange(128) % 2, np.arange(128), 0)).all()


@pytest.mark.parametrize("order", ["forward", "random"])
def test_ways_that_part_meet_again(order: str) -> None:
    """A loop that lanes leave one by one, with a branch inside; then a shuffle that needs them all."""
    out = run(
        """mov.u32 %r10, 0; mov.u32 %r11, 0;
        L: and.b32 %r12, %r10, 1; setp.eq.u32 %p1, %r12, 0; @%p1 bra E;
        add.s32 %r11, %r11, 10; bra.uni N;
        E: add.s32 %r11, %r11, 1;
        N: add.s32 %r10, %r10, 1; setp.le.u32 %p2, %r10, %r6; @%p2 bra L;
        shfl.sync.bfly.b32 %r20, %r11, 1, 31, -1;""",
        False,
        order,
    )
    lane = np.arange(128) % 32 ^ 1
    assert (out == (lane // 2 + 1) + 10 * ((lane + 1) // 2)).all()


@pytest.mark.parametrize(("which", "found"), [("max", 98), ("min", 91)])
def test_the_largest_or_smallest_of_some_lanes(which: str, found: int) -> None:
    out = run(
        f"""sub.s32 %r7, %r6, 9; setp.gt.u32 %p1, %r6, 7; @%p1 bra L;
        redux.sync.{which}.s32 %r20, %r7, 0xff; add.s32 %r20, %r20, 100; L:""",
        False,
        "forward",
    )
    number = np.arange(128)
    assert (out == np.where(number % 32 < 8, found, number)).all()
