"""wgmma against the layouts of the PTX ISA, and what keeps its operands in order: each fault is found and named."""

from __future__ import annotations

import numpy as np
import pytest

from .file import File
from .machine import emulator

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

RANDOM = np.random.default_rng(0)
A = RANDOM.integers(-8, 9, (64, 8)).astype(np.float32)  # exact as tf32
#: By the width of a swizzled row, none being 16: its code in a descriptor.
SWIZZLES = {128: 1, 64: 2, 32: 3, 16: 0}


def image(b: np.ndarray, width: int, chunk: int) -> np.ndarray:
    """Shared memory with the rows of b, whose first 16 bytes are number ``chunk`` of rows of that width."""
    rows = b.view(np.uint32).reshape(len(b), 2, 4)
    found = np.zeros((len(b) * max(width, 32) // 16, 4), dtype=np.uint32)
    for r, row in enumerate(rows):
        for half, words in enumerate(row):
            if width == 16:  # matrices of 8 rows, the two halves one behind the other
                found[r // 8 * 16 + 8 * half + r % 8] = words
            else:
                turned = r % 8 // (128 // width)
                found[r * (width // 16) + ((chunk + half) ^ turned)] = words
    return found.reshape(-1)


def descriptor(width: int, chunk: int, at: int = 0) -> int:
    """Shared memory begins at 1024, and the tile ``at`` bytes on; in units of 16 bytes."""
    halves, eights = (8, 16) if width == 16 else (1, width // 2)
    return (64 + at // 16 + chunk) | halves << 16 | eights << 32 | SWIZZLES[width] << 62


FENCES = "fence.proxy.async.shared::cta; bar.sync 0; wgmma.fence.sync.aligned;"
WAIT = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"


def run(
    b: np.ndarray,
    width: int,
    chunk: int = 0,
    fences: str = FENCES,
    wait: str = WAIT,
    times: int = 1,
    of_a: tuple[int, int] | None = None,
) -> np.ndarray:
    """A b' by one block of four warps, ``times`` added up; ``of_a``: A is in shared memory, of that width and chunk."""
    columns, words = len(b), image(b, width, chunk)
    words = np.concatenate([words, np.zeros(-len(words) % 256, dtype=np.uint32)])
    behind_b = words.nbytes
    if of_a:
        words = np.concatenate([words, image(A, *of_a)])
    y = np.zeros((128, columns // 2), dtype=np.float32)
    d = ", ".join(f"%d{k}" for k in range(columns // 2))
    copies = "".join(
        f"ld.global.b32 %r2, [%rd2+{4 * at}]; st.shared.b32 [%r3+{4 * at}], %r2;"
        for at in range(0, len(words), 128)
    )
    a_operand = "%rd6" if of_a else "{%a0, %a1, %a2, %a3}"
    product = f"wgmma.mma_async.sync.aligned.m64n{columns}k8.f32.tf32.tf32 {{{d}}}, {a_operand}, %rd4,"
    text = f"""
    .version 8.0
    .target sm_90a
    .address_size 64
    .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 y) {{
      .reg .b32 %a<4>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<3>;
      .reg .f32 %d<{columns // 2}>; .reg .f32 %early;
      .shared .align 1024 .b8 tile[{4 * len(words)}];
      ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [y]; mov.u32 %r1, %tid.x;
      mul.wide.u32 %rd5, %r1, 16; add.s64 %rd1, %rd1, %rd5;
      ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%rd1];
      mul.wide.u32 %rd5, %r1, 4; add.s64 %rd2, %rd2, %rd5;
      mov.u32 %r3, tile; shl.b32 %r4, %r1, 2; add.s32 %r3, %r3, %r4;
      {copies}
      mov.u64 %rd4, {descriptor(width, chunk)};
      mov.u64 %rd6, {descriptor(*of_a, behind_b) if of_a else 0}; setp.eq.u32 %p1, %r1, %r1;
      {fences}
      {product} 0, 1, 1; {f"{product} %p1, 1, 1;" * (times - 1)}
      {wait}
      mul.wide.u32 %rd5, %r1, {2 * columns}; add.s64 %rd3, %rd3, %rd5;
      {"".join(f"st.global.f32 [%rd3+{4 * k}], %d{k};" for k in range(columns // 2))}
      ret;
    }}"""
    lanes = A.reshape(4, 2, 8, 2, 4).transpose(
        0, 2, 4, 3, 1
    )  # warp, g, t, then a column's four and row's eight
    a = np.ascontiguousarray(lanes).reshape(128, 4)
    params = np.array([x.ctypes.data for x in (a, words, y)], dtype=np.uint64)
    buffers = [(n, x.ctypes.data, x.nbytes, 4) for n, x in (("a", a), ("b", words), ("y", y))]
    File(text).run("k", params.ctypes.data, (1, 1, 1), (128, 1, 1), 0, "random", 1, buffers)
    found = y.reshape(4, 8, 4, columns // 8, 2, 2)  # warp, g, t, columns' eight, rows' eight, neighbour
    return found.transpose(0, 4, 1, 3, 2, 5).reshape(64, columns)


LAYOUTS = [(16, 0), (32, 0), (64, 0), (64, 2), (128, 0), (128, 2), (128, 4), (128, 6)]


@pytest.mark.parametrize(("width", "chunk"), LAYOUTS)
@pytest.mark.parametrize("columns", [16, 64])
def test_product(columns: int, width: int, chunk: int) -> None:
    b = RANDOM.integers(-8, 9, (columns, 8)).astype(np.float32)
    assert (run(b, width, chunk) == A @ b.T).all()
    assert (run(b, width, chunk, times=3) == 3 * A @ b.T).all()


@pytest.mark.parametrize("of_a", LAYOUTS)
@pytest.mark.parametrize("of_b", [(16, 0), (64, 2)])
def test_product_of_two_tiles_in_shared_memory(of_a: tuple[int, int], of_b: tuple[int, int]) -> None:
    b = RANDOM.integers(-8, 9, (32, 8)).astype(np.float32)
    assert (run(b, *of_b, of_a=of_a) == A @ b.T).all()
    assert (run(b, *of_b, of_a=of_a, times=3) == 3 * A @ b.T).all()


def test_what_is_read_before_the_wait_is_what_was_there_before() -> None:
    b = np.ones((16, 8), dtype=np.float32)
    found = run(b, 32, wait=f"mov.f32 %early, %d0; {WAIT} mov.f32 %d0, %early;")
    lost = np.isnan(found)  # registers begin so
    assert lost.sum() == 128
    assert (found == A @ b.T)[~lost].all()


FAULTS = {
    "no fence of the proxies": (
        {"fences": FENCES.replace("fence.proxy.async.shared::cta;", "")},
        r"a wgmma's read of shared tile\+(0|1024), which was written with no fence.proxy.async since",
    ),
    "no fence of the registers": (
        {"fences": FENCES.replace("wgmma.fence.sync.aligned;", "")},
        "no wgmma.fence orders it behind what its registers held before",
    ),
    "no barrier": (
        {"fences": FENCES.replace("bar.sync 0;", "")},
        r"read of unwritten shared memory|race on shared tile",
    ),
    "no wait": ({"wait": ""}, "exited before a wgmma that it had begun was waited for"),
    "a wait that leaves one": (
        {"wait": WAIT.replace("aligned 0", "aligned 1")},
        "exited before a wgmma that it had begun was waited for",
    ),
    "a warp stays away": (
        {"fences": FENCES + "setp.gt.u32 %p2, %r1, 95; @%p2 ret;"},
        r"has begun 0 products of its group of four warps, thread \(0,0,0\) 1",
    ),
    "a lane stays away": (
        {"fences": FENCES + "setp.eq.u32 %p2, %r1, 5; @%p2 ret;"},
        "does not take part in the warp's mma",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_finds_the_planted_fault(name: str) -> None:
    changes, said = FAULTS[name]
    for of_a in (None, (32, 0)):
        with pytest.raises(RuntimeError, match=r"^k: block \(0,0,0\) thread \(\d+,0,0\): .*(" + said + ")"):
            run(np.ones((16, 8), dtype=np.float32), 32, of_a=of_a, **changes)
