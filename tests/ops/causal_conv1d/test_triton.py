"""The Triton kernels of the short convolution against plain torch in float64: interpreted, or compiled on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import second_derivatives
from tests.triton_kernels import device, skip_reason

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.causal_conv1d import causal_conv1d, reference
from sequence_kernels.ops.causal_conv1d import triton as kernels

from .test_causal_conv1d import close, drawn

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="causal_conv1d/triton")

DEVICE = device()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
#: Batch, channels, length and taps: tiles that are filled, ragged and almost empty; shorter than the state, and empty.
EITHER = [(2, 3, 1, 4), (2, 2, 0, 4), (1, 3, 20, 1)]
CASES = [
    ((1, 3, 20, 4), torch.float32, False),  # as PTX too
    *((shape, torch.float64, last) for shape in EITHER for last in (False, True)),
    ((1, 5, 260, 3), torch.float64, False),
    ((1, 65, 17, 4), torch.float64, True),
    ((1, 3, 20, 4), torch.float32, True),
    *(((1, 3, 20, 4), dtype, last) for dtype in (torch.bfloat16, torch.float16) for last in (False, True)),
]


@pytest.mark.on_ptx
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
@pytest.mark.parametrize(("shape", "dtype", "last"), CASES, ids=str)
def test_results_and_gradients(shape: Any, dtype: torch.dtype, last: bool, bare: bool) -> None:
    compare(shape, dtype, last, bare)


@pytest.mark.thorough
@pytest.mark.parametrize("bare", [False, True], ids=["all", "bare"])
@pytest.mark.parametrize(
    ("taps", "dtype", "last"), dict.fromkeys((shape[3], *rest) for shape, *rest in CASES), ids=str
)
def test_tiles_that_are_filled(taps: int, dtype: torch.dtype, last: bool, bare: bool) -> None:
    """Of each kernel above; and ragged ones, that end anywhere; with sums too large for their exponential."""
    for less in range(9):
        shape = (2, 65 - less, 33 - less, taps) if last else (2, 5, 131 - less, taps)
        compare(shape, dtype, last, bare, largest=800)


def compare(shape: Any, dtype: torch.dtype, last: bool, bare: bool, largest: float = 1) -> None:
    x, weight, bias, state = drawn(*shape, last)
    if largest > 1:
        bias[0], bias[1] = -largest, largest
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, state, g, g_final = (t.to(dtype) for t in (x, state, torch.cos(x), torch.sin(state)))
    weight, bias = weight.to(real), bias.to(real)
    x, g = (t.mT if last else t for t in (x, g))
    op = "causal_conv1d_channels_last" if last else "causal_conv1d"
    rest = (weight, None, None, False) if bare else (weight, bias, state, True)
    for name, given in ((op, (x, *rest)), (f"{op}_backward", (g, g_final, x, *rest))):
        wide = [t.double() if isinstance(t, torch.Tensor) else t for t in given]
        want = getattr(reference, name)(*wide)
        moved = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in given]
        close(getattr(kernels, name)(*moved), want, TOLERANCE[dtype] * 3)


@pytest.mark.checks("gradcheck", of="causal_conv1d/triton")
def test_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in ("causal_conv1d", "causal_conv1d_backward"):
        run = getattr(kernels, op)
        monkeypatch.setitem(
            dispatch._implementations[op], "triton", dispatch.Implementation(run, lambda *_: None)
        )
    monkeypatch.setitem(dispatch._DEVICES, "triton", ("cpu", "cuda"))
    monkeypatch.setattr(dispatch, "PROVEN_FIRST", ())
    dispatch.forget()
    tensors = [t.to(DEVICE) for t in drawn(1, 2, 5, 3, False)]

    def function(backend: str) -> Any:
        return lambda x, w, b, s: causal_conv1d(x, w, b, activation="silu", initial_state=s, backend=backend)

    second_derivatives.assert_those_of_torch(function, tensors, "triton")
