"""The Triton kernels of state-space duality against plain torch in float64: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.triton_kernels import device, skip_reason

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops.ssd import reference
from sequence_kernels.ops.ssd import triton as kernels

from .test_ssd import close, drawn

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="ssd/triton")

DEVICE = device()
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
#: Batch, length, heads, channels, groups and states: tiles that are filled, ragged, several, and none.
CASES = [
    ((1, 35, 2, 3, 1, 4), torch.float32, True),
    ((1, 35, 2, 3, 1, 4), torch.float32, False),
    ((1, 18, 2, 17, 2, 20), torch.float64, True),
    ((1, 70, 1, 33, 1, 40), torch.float32, True),
    ((1, 33, 2, 3, 2, 4), torch.bfloat16, True),
    ((1, 33, 2, 3, 2, 4), torch.float16, False),
    ((2, 0, 2, 3, 1, 4), torch.float64, True),
]


@pytest.mark.on_ptx
@pytest.mark.parametrize(("sizes", "dtype", "whole"), CASES, ids=str)
def test_results(sizes: Any, dtype: torch.dtype, whole: bool) -> None:
    compare(sizes, dtype, whole)


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "whole"), dict.fromkeys(tuple(rest) for _, *rest in CASES), ids=str)
def test_tiles_that_are_filled(dtype: torch.dtype, whole: bool) -> None:
    """And in each direction one more, which is not; or one that is almost. Sums are of up to a hundred times as many
    products as above."""
    block = 16 if dtype == torch.float64 else 32
    more = 5 if dtype in (torch.float32, torch.float64) else 20  # why bfloat16 needs that many is not known
    compare((2, block + 3, 2, block + 1, 1, block + 1), dtype, whole, more=more)
    compare((2, block - 3, 2, block - 2, 2, block - 2), dtype, whole, more=more)


def compare(sizes: Any, dtype: torch.dtype, whole: bool, more: float = 1) -> None:
    """``more``: times the tolerance."""
    t = drawn(*sizes)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, b, c = (t[name].to(dtype) for name in "xbc")
    given = [x, t["dt"].abs().to(real), t["a"].to(real), b, c]
    given += [t["d"].to(real), t["initial_state"].to(real)] if whole else [None, None]
    gradients = [torch.cos(t["x"]).to(dtype), torch.sin(t["initial_state"]).to(real)]
    wide, moved = (
        [None if g is None else how(g) for g in (*gradients, *given)]
        for how in (torch.Tensor.double, lambda g: g.to(DEVICE))
    )
    want, got = reference.ssd(*wide[2:]), kernels.ssd(*moved[2:])
    assert [r.dtype for r in got] == [dtype, real]
    each_close(got, want, more)
    want, got = reference.ssd_backward(*wide), kernels.ssd_backward(*moved)
    assert [r.dtype for r in got] == [dtype, real, real, dtype, dtype, real, real]
    each_close(got, want, more)


def each_close(got: Any, want: Any, more: float) -> None:
    """By its own dtype: what is float32 has its digits beside sequences of 16 bits."""
    for one, other in zip(got, want, strict=True):
        close([one], [other], more * TOLERANCE[one.dtype])


@pytest.mark.parametrize(
    ("dtype", "rate", "tolerance"),
    [(torch.float32, 60, 2e-6), pytest.param(torch.float64, 300, 1e-11, marks=pytest.mark.thorough)],
    ids=str,
)
def test_fast_decays_lose_no_digits(dtype: torch.dtype, rate: float, tolerance: float) -> None:
    """Exponents are differences of sums of up to 1e3, whose rounding in float32 would show; in float64 of more than
    any number has."""
    t = {name: value.to(dtype) for name, value in drawn(1, 64, 1, 3, 1, 4).items()}
    given = [t["x"], t["dt"].abs(), rate * t["a"], t["b"], t["c"], t["d"], t["initial_state"]]
    want = reference.ssd(*(g.double() for g in given))
    moved = [g.to(DEVICE) for g in given]
    close(kernels.ssd(*moved), want, tolerance)
    gradients = torch.cos(given[0]), torch.sin(given[-1])
    want = reference.ssd_backward(*(g.double() for g in (*gradients, *given)))
    close(kernels.ssd_backward(*(g.to(DEVICE) for g in gradients), *moved), want, 5 * tolerance)
