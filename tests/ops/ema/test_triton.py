"""The Triton kernels of exponential moving sums against plain torch: interpreted, or compiled on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.triton_kernels import device, skip_reason

from ..sample import real

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops.ema import reference
from sequence_kernels.ops.ema import triton as kernels

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="ema/triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_plain_torch(dtype: torch.dtype) -> None:
    u, a, g = (t.to(device(), dtype) for t in (real(2, 3, 5), 0.5 * real(3, seed=1), real(2, 3, 5, seed=2)))
    torch.testing.assert_close(kernels.ema(u, a), reference.ema(u, a))
    for got, want in zip(kernels.ema_backward(g, u, a), reference.ema_backward(g, u, a), strict=True):
        torch.testing.assert_close(got, want)
