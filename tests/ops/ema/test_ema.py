"""Exponential moving sums of every backend against the sums written out."""

from __future__ import annotations

import pytest
import torch

from sequence_kernels import ops

from ..devices import backends
from ..sample import Sample, real

SAMPLES = {"ema": Sample("ema", ops.ema, (real(2, 3, 5), 0.5 * real(3, seed=1)))}


@pytest.mark.checks("oracle")
@pytest.mark.parametrize("backend", backends("ema"))
@pytest.mark.parametrize("length", [0, 1, 2, 33])
def test_against_the_sums_written_out(backend: str, length: int) -> None:
    u, a = real(2, 3, length), torch.tensor([0.0, 0.9, -1.1], dtype=torch.float64)
    lags = torch.arange(length)
    powers = torch.where(lags[:, None] >= lags, a[:, None, None] ** (lags[:, None] - lags).clamp(0), 0.0)
    torch.testing.assert_close(ops.ema(u, a, backend=backend), torch.einsum("hts,bhs->bht", powers, u))
