"""ldmatrix and stmatrix against the layouts of the PTX ISA: matrix k has rows 8 k to 8 k + 7, of 16 bytes."""

from __future__ import annotations

import numpy as np
import pytest

from .file import File
from .machine import emulator

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

#: A lane has four numbers of x in %a, and its own row of the tile at %row.
HEAD = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y) {
  .reg .b32 %a<4>; .reg .b32 %r<9>; .reg .b32 %row; .reg .b64 %rd<9>;
  .shared .align 16 .b8 tile[512];
  ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 16;
  add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
  ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%rd1];
  mov.u32 %r2, tile; shl.b32 %r3, %r1, 4; add.s32 %row, %r2, %r3;
"""
TAIL = "st.global.v4.b32 [%rd2], {%a0, %a1, %a2, %a3}; ret; }"
X = np.random.default_rng(0).integers(0, 1 << 32, (32, 4), dtype=np.uint32)


def run(statements: str) -> np.ndarray:
    y = np.zeros((32, 4), dtype=np.uint32)
    params = np.array([X.ctypes.data, y.ctypes.data], dtype=np.uint64)
    File(HEAD + statements + TAIL).run("k", params.ctypes.data, (1, 1, 1), (32, 1, 1))
    return y


def registers(matrices: int) -> str:
    names = ", ".join(f"%a{k}" for k in range(matrices))
    return f"{{{names}}}"


@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_stored(matrices: int) -> None:
    name = f"stmatrix.sync.aligned.m8n8.x{matrices}.shared.b16"
    rows = run(f"{name} [%row], {registers(matrices)}; ld.shared.v4.b32 {registers(4)}, [%row];")
    lanes = X.reshape(8, 4, 4)  # row, word of the row, matrix
    for k in range(matrices):
        assert (rows[8 * k : 8 * k + 8] == lanes[..., k]).all()
    assert (rows[8 * matrices :] == 0xFFFFFFFF).all()


@pytest.mark.parametrize(("matrices", "turned"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_loaded(matrices: int, turned: bool) -> None:
    name = f"ldmatrix.sync.aligned.m8n8.x{matrices}{'.trans' if turned else ''}.shared.b16"
    got = run(f"st.shared.v4.b32 [%row], {registers(4)}; {name} {registers(matrices)}, [%row];")
    for k in range(matrices):
        matrix = X[8 * k : 8 * k + 8].view(np.uint16)
        want = (matrix.T.copy() if turned else matrix.copy()).view(np.uint32)  # row, word of the row
        assert (got[:, k] == want.reshape(32)).all()
