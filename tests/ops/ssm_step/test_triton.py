"""The Triton kernel of the steps against the step as written: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import second_derivatives
from tests.triton_kernels import device, skip_reason

from . import exact

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.ssm_step import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="ssm_step/triton")

DEVICE = device()
SHAPES: list[tuple[int, int, int, int, int | None]] = [
    (1, 3, 1, 1, None),
    (1, 2, 5, 0, 1),
    (3, 2, 4, 2, 0),
    (9, 2, 33, 1, 2),
    (2, 3, 0, 1, 1),
]


def run(x: exact.Step, in_place: bool) -> None:
    on = exact.Step(*(None if t is None else t.clone().to(DEVICE) for t in x))
    after = on.state if in_place else torch.full_like(on.state, complex("nan"))
    y = kernels.kernel(*on, after)  # type: ignore[arg-type]
    exact.check(x, y.cpu(), after.cpu())


@pytest.mark.on_ptx
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(shape: Any, dtype: torch.dtype) -> None:
    run(exact.sample(*shape, dtype=dtype), in_place=False)
    run(exact.sample(*shape, dtype=dtype, skip=False), in_place=True)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", exact.TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 11])
@pytest.mark.parametrize("pairs", [1, 2, 4, 8, 32, 64])
def test_tiles_that_are_filled(pairs: int, rows: int, dtype: torch.dtype) -> None:
    """By all pairs and rows, of several ranks and channels."""
    for n in dict.fromkeys((pairs, pairs // 2 + 1)):
        run(exact.sample(rows, 3, n, 3, 3, dtype=dtype), in_place=False)
        run(exact.sample(rows, 3, n, 2, 2, dtype=dtype, skip=False), in_place=True)


@pytest.mark.on_ptx
@pytest.mark.parametrize("pairs", [33, 64, 65])
def test_rows_for_which_a_program_reads_the_parameters_once(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 32 of up to 64 pairs, where there are programs enough; the last program has fewer."""
    monkeypatch.setattr(kernels, "ENOUGH", 5 * 3)
    run(
        exact.sample(37, 3, pairs, 2, 1), in_place=False
    )  # 5 programs of 8 rows, or 2 of 32, for each of 3 heads


@pytest.mark.parametrize("rank", [None, 1])
def test_state_indices(rank: int | None) -> None:
    state_indices = [4, -1, 0, 5, 2, -1, 1, 99, 8]  # of 9 slots
    run(exact.sample(9, 2, 3, 2, rank, state_indices=state_indices, slots=9), in_place=True)
    run(exact.sample(1, 2, 3, state_indices=[-1], slots=2), in_place=True)


@pytest.mark.parametrize("rank", [None, 1])
def test_what_moves_a_state_is_added_at_once(rank: int | None) -> None:
    x = exact.nearly_still(3, rank)
    on = exact.Step(*(None if t is None else t.to(DEVICE) for t in x))
    after = torch.full_like(on.state, complex("nan"))
    kernels.kernel(*on, after)  # type: ignore[arg-type]
    exact.rounded_up(after.cpu())


@pytest.mark.launches_nothing
def test_empty_dimensions() -> None:
    for rows, heads in ((0, 2), (2, 0)):
        run(exact.sample(rows, heads, 3), in_place=True)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel serves backend="triton" of the registered ops, on the CPU too."""
    for op in ("ssm_step", "ssm_step_"):
        run = dispatch.implementation(op, "triton")
        served = dispatch.Implementation(run, lambda device, dtype: None)
        monkeypatch.setitem(dispatch._implementations[op], "triton", served)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_ops(dtype: torch.dtype) -> None:
    """Strides, dtypes and layouts are the Python side's, the same as for the C++ kernels."""
    x = exact.sample(3, 2, 5, 2, 1)
    state, u, *parameters = (
        None if t is None else t.to(DEVICE)
        for t in (x.state, x.u.to(dtype), x.a_minus_one, x.b, x.c, x.d, x.p, x.q)
    )
    op, op_ = torch.ops.sequence_kernels.ssm_step.default, torch.ops.sequence_kernels.ssm_step_.default
    for given in (parameters, [*parameters[:4], None, None]):
        y, after = op(state, u, *given, "triton")
        want, want_after = op(state, u, *given, "torch")
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(after, want_after)
        strided = torch.zeros(3, 5, 2, dtype=torch.complex64, device=DEVICE).mT.copy_(state)
        torch.testing.assert_close(op_(strided, u, *given, None, "triton"), want)
        torch.testing.assert_close(strided, want_after)


@pytest.mark.checks("gradcheck", of="ssm_step/triton")
@pytest.mark.usefixtures("registered")
def test_first_and_second_derivatives() -> None:
    """The values are the kernel's; the derivatives are plain torch's."""
    x = exact.sample(2, 1, 2, 1, 1, dtype=torch.complex128)
    arguments = [t.to(DEVICE).requires_grad_() for t in (x.state, x.u, *x[3:])]

    def step(backend: str) -> Any:
        return lambda *arguments: torch.ops.sequence_kernels.ssm_step.default(*arguments, backend)

    assert torch.autograd.gradcheck(step("triton"), arguments, fast_mode=True)
    second_derivatives.assert_those_of_torch(step, arguments, "triton")
