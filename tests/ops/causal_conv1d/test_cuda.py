"""The short convolution on the stand-in driver, host code and CUDA kernels, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.causal_conv1d import cpu, reference
from sequence_kernels.ops.causal_conv1d.cuda import MOST_TAPS
from tests.cuda_driver import ORDERS, driver, skip_reason

from .test_causal_conv1d import close, drawn

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="causal_conv1d/cuda"),
]

F32, F64 = torch.float32, torch.float64
TOLERANCE = {F64: 1e-12, F32: 6e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
#: Batch, channels, length and taps, with the channels last or not: tiles that are filled, ragged, several, and almost
#: empty; as many taps as are held in registers, and others; shorter than the state, and empty.
CASES = [
    ((1, 5, 260, 4), False, F64),
    ((1, 5, 254, 3), False, F32),
    ((1, 35, 63, 4), True, F32),
    ((2, 3, 67, 2), True, F64),
    ((2, 8, 5, 2), False, F64),
    *(((2, 3, 2, 6), last, F64) for last in (False, True)),
    *(((1, 3, 4, 1), last, F32) for last in (False, True)),
    ((2, 2, 0, 4), True, F64),
    *(((1, 5, 60 if last else 252, 7), last, dtype) for last in (False, True) for dtype in (F32, F64)),
]


def given(sizes: Any, last: bool, dtype: torch.dtype, bare: bool = False) -> tuple[list[Any], list[Tensor]]:
    """A native call, and the gradients of its results."""
    x, weight, bias, state = drawn(*sizes, last)
    g, g_final = torch.cos(x), torch.sin(state)
    x, g = ((t.mT if last else t).to(dtype) for t in (x, g))
    real = F64 if dtype == F64 else F32
    weight, bias, state, g_final = (t.to(dtype).to(real) for t in (weight, bias, state, g_final))
    return [x, weight, *((None, None, False) if bare else (bias, state, True)), last], [g, g_final]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    for dtype, last in ((F32, True), (F64, False)):
        call, gradients = given((2, 3, 70, 4), last, dtype)
        yield "causal_conv1d", call
        yield "causal_conv1d_backward", [*gradients, *call]


def check(sizes: Any, last: bool, dtype: torch.dtype, bare: bool = False, **options: Any) -> None:
    call, gradients = given(sizes, last, dtype, bare)
    op = "causal_conv1d_channels_last" if last else "causal_conv1d"
    for name, arguments in (("", call), ("_backward", [*gradients, *call])):
        wide = [t.double() if isinstance(t, Tensor) else t for t in arguments[:-1]]
        got = driver().run(f"causal_conv1d{name}", *arguments, **options)
        want = getattr(reference, f"{op}{name}")(*wide)
        assert got[0].dtype == dtype
        close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
@pytest.mark.parametrize(("sizes", "last", "dtype"), CASES, ids=str)
def test_results_and_gradients(sizes: Any, last: bool, dtype: torch.dtype, bare: bool) -> None:
    check(sizes, last, dtype, bare)


def test_half_precision() -> None:
    """Computed in float32 and rounded once; the state keeps the bits of the inputs."""
    for dtype in (torch.bfloat16, torch.float16):
        for last in (False, True):
            for width in (4, 7):
                check((1, 3, 300, width), last, dtype)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_gradients_of_taps_are_sums_of_any_number_of_parts(dtype: torch.dtype) -> None:
    """Sixteen of which are added up together."""
    for batch in range(1, 34):
        check((batch, 1, 3, 2), True, dtype)


@pytest.mark.parametrize("last", [False, True], ids=["elements", "channels"])
@pytest.mark.parametrize("width", [4, 7])
def test_activations_at_the_ends_of_their_range(width: int, last: bool) -> None:
    """Open wide or shut, where the exponential is none of a normal number."""
    call, gradients = given((1, 3, 300, width), last, F64)
    call[0] *= 400
    want = [
        getattr(reference, f"{op}{name}")(*of[:-1])
        for op in ["causal_conv1d_channels_last" if last else "causal_conv1d"]
        for name, of in (("", call), ("_backward", [*gradients, *call]))
    ]
    got = driver().run("causal_conv1d", *call), driver().run("causal_conv1d_backward", *gradients, *call)
    for one, other in zip(got, want, strict=True):
        close(one, other, 400 * TOLERANCE[F64])  # of numbers so many times as large


def test_channels_that_are_part_of_something_wider() -> None:
    (x, *rest), _ = given((2, 5, 9, 4), True, F64)
    wide = torch.cat((x, x, x), -1)[..., 3:8]
    close(driver().run("causal_conv1d", wide, *rest), cpu.forward(True)(wide, *rest[:-1]))


@pytest.mark.checks("sanitizers", of="causal_conv1d/cuda")
@pytest.mark.parametrize("order", ["forward", "random"])
def test_every_access_is_in_bounds_and_ordered(order: str) -> None:
    check((1, 3, 65, 4), True, F64, check=True, order=order, seed=1)
    check((1, 2, 5, 3), False, F32, check=True, order=order, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("sizes", "last", "dtype"), CASES, ids=str)
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    sizes: Any, last: bool, dtype: torch.dtype, order: str
) -> None:
    check(sizes, last, dtype, check=True, order=order, seed=2)


@pytest.mark.launches_nothing
def test_more_taps_than_a_block_takes_are_left_to_torch() -> None:
    """On CPU tensors, whose native op takes what the kernels take."""
    for width in (32, 33):
        for last in (False, True):
            call, gradients = given((1, 2, 40, width), last, F64)
            if width > MOST_TAPS:
                with pytest.raises(RuntimeError, match="a channel has too many taps for a block"):
                    driver().run("causal_conv1d", *call)
            op = "causal_conv1d_channels_last" if last else "causal_conv1d"
            for name, arguments in ((op, call[:-1]), (f"{op}_backward", [*gradients, *call[:-1]])):
                served = dispatch._implementations[name]["cuda"].run
                close(served(*arguments), getattr(reference, name)(*arguments))
