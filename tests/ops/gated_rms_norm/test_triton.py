"""The Triton kernels of the gated norm against plain torch in float64: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import second_derivatives
from tests.triton_kernels import device, skip_reason

from .test_gated_rms_norm import draw, error

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

import triton

from sequence_kernels import ops
from sequence_kernels.ops import dispatch
from sequence_kernels.ops.gated_rms_norm import reference
from sequence_kernels.ops.gated_rms_norm import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="gated_rms_norm/triton")

DEVICE = device()
F32, F64 = torch.float32, torch.float64
TOLERANCE = {F64: 1e-12, F32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
#: Rows, channels, groups, the gate's place, and the dtype. Blocks that are filled, and not; several rows a program.
CASES = [
    ((3, 33, 1), "first", F32),
    ((3, 12, 2), "last", F32),
    ((4, 10, 1), None, F64),
    ((3, 32, 2), "first", F64),
    ((5, 7, 1), "last", torch.bfloat16),
    ((5, 8, 2), "first", torch.float16),
    ((0, 5, 1), "first", F32),
    ((3, 0, 1), "last", F32),
]


def compare(sizes: Any, gate: str | None, dtype: torch.dtype) -> None:
    rows, channels, groups = sizes
    x, weight, *z = draw(rows, channels, gate is not None)
    shape = (rows, groups, channels // groups)
    # Parts of wider projections, whose rows are apart.
    sequences = [torch.stack((t, t), 1)[:, 1].view(shape) for t in (torch.cos(x), x, *z)]
    g, x, *z = (t.to(dtype) for t in sequences)
    call = (x, weight.view(shape[1:]).to(F64 if dtype == F64 else F32), *(z or [None]), gate == "first", 1e-3)
    for name, given in (("gated_rms_norm", call), ("gated_rms_norm_backward", (g, *call))):
        wide = [t.double() if isinstance(t, torch.Tensor) else t for t in given]
        moved = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in given]
        want, got = getattr(reference, name)(*wide), getattr(kernels, name)(*moved)
        for one, other in zip(*([r] if name == "gated_rms_norm" else r for r in (got, want)), strict=True):
            assert one.dtype in (dtype, call[1].dtype)
            assert error(one.cpu().double(), other) < max(
                TOLERANCE[one.dtype], TOLERANCE[F32] * (dtype != F64)
            )


@pytest.mark.on_ptx
@pytest.mark.parametrize(("sizes", "gate", "dtype"), CASES[:-2], ids=str)
def test_results_and_gradients(sizes: Any, gate: str | None, dtype: torch.dtype) -> None:
    compare(sizes, gate, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("filled", [False, True], ids=["ragged", "filled"])
@pytest.mark.parametrize(("sizes", "gate", "dtype"), CASES[:-2], ids=str)
def test_several_rows_of_each_program(
    sizes: Any, gate: str | None, dtype: torch.dtype, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the kernels above: the last has fewer rows; a group fills its block, or ends within it."""
    monkeypatch.setattr(kernels, "ENOUGH", 3)
    _, channels, groups = sizes
    block = triton.next_power_of_2(channels // groups)
    compare((7, groups * (block if filled else block // 2 + 1), groups), gate, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("sizes", "gate", "dtype"), [case for case in CASES[:-2] if case[1] and case[2] in (F32, F64)], ids=str
)
def test_gates_of_any_size(sizes: Any, gate: str, dtype: torch.dtype) -> None:
    """Each number has its digits, down to where exponentials are no normal numbers any more."""
    size = triton.next_power_of_2(sizes[1] // sizes[2])
    most = 708.9 if dtype == F64 else 87.0
    z = torch.tensor([-most, -most / 2, -21, -3, -1, -1e-4, 0.5, 2], dtype=dtype).repeat(1, 1, size // 8)
    x, weight = torch.ones_like(z), torch.linspace(1, 2, size, dtype=dtype).unsqueeze(0)
    call = (x, weight, z, gate == "first", 1e-3)
    there = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in (x, *call)]
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (x, *call)]
    got = kernels.gated_rms_norm(*there[1:]), kernels.gated_rms_norm_backward(*there)[2]
    want = reference.gated_rms_norm(*wide[1:]), reference.gated_rms_norm_backward(*wide)[2]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.cpu().double(), other, rtol=1e-13 if dtype == F64 else 2e-6, atol=0)


@pytest.mark.launches_nothing
def test_no_rows_and_no_channels() -> None:
    for case in CASES[-2:]:
        compare(*case)


def test_several_rows_of_a_program_and_groups_that_none_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ENOUGH", 2)
    compare((9, 6, 2), "first", F64)
    monkeypatch.setitem(kernels.MOST_CHANNELS, F64, 5)
    compare((2, 6, 1), "last", F64)


@pytest.mark.checks("gradcheck", of="gated_rms_norm/triton")
def test_first_and_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._DEVICES, "triton", ("cpu", "cuda"))
    monkeypatch.setattr(dispatch, "PROVEN_FIRST", ())
    dispatch.forget()
    given = [t.to(DEVICE).requires_grad_() for t in draw(2, 8, True)]

    def function(backend: str) -> Any:
        return lambda *tensors: ops.gated_rms_norm(*tensors, groups=2, eps=1e-3, backend=backend)

    assert torch.autograd.gradcheck(function("triton"), given, fast_mode=True)
    second_derivatives.assert_those_of_torch(function, given, "triton")
