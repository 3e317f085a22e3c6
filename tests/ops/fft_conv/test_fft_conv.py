"""The FFT convolution against sums as written."""

from __future__ import annotations

import pytest
import torch

from sequence_kernels import ops
from sequence_kernels.ops.fft_conv.reference import fast_length

from ..sample import Sample, real

SAMPLES = {
    "fft_conv": Sample("fft_conv", ops.fft_conv, (real(2, 3, 7), real(4, 3, 5), real(4, 3))),
    "fft_conv-bidirectional": Sample(
        "fft_conv",
        lambda u, k, d: ops.fft_conv(u, k, d, bidirectional=True),
        (real(2, 3, 7), real(4, 3, 9), real(2, 3)),
    ),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("taps", [1, 4, 9, 15])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_against_the_sum_as_written(bidirectional: bool, taps: int, length: int) -> None:
    u = torch.randn(2, 3, length, dtype=torch.float64)
    k = torch.randn(4 if bidirectional else 2, 3, taps, dtype=torch.float64)
    d = torch.randn(2, 3, dtype=torch.float64)
    want = d.unsqueeze(-1) * u.unsqueeze(1)
    for t in range(length):
        for s in range(length):
            if 0 <= t - s < taps:
                want[..., t] += k[:2, :, t - s] * u[:, None, :, s]
            if bidirectional and 0 <= s - t - 1 < taps:
                want[..., t] += k[2:, :, s - t - 1] * u[:, None, :, s]
    torch.testing.assert_close(ops.fft_conv(u, k, d, bidirectional=bidirectional), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_any_length(dtype: torch.dtype) -> None:
    u, k = torch.randn(2, 3, 77).to(dtype), torch.randn(1, 3, 50)
    got = ops.fft_conv(u, k)
    assert got.dtype == dtype
    torch.testing.assert_close(got, ops.fft_conv(u.float(), k).to(dtype))


def test_fast_lengths_are_the_least_smooth_ones() -> None:
    def smooth(n: int) -> bool:
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for least in range(1, 2000):
        assert fast_length(least) == next(n for n in range(least, 2 * least + 1) if smooth(n))


def test_empty_sequences_and_batches() -> None:
    u = torch.ones(2, 3, 0, requires_grad=True)
    y = ops.fft_conv(u, torch.ones(2, 3, 5))
    assert y.shape == (2, 2, 3, 0)
    y.sum().backward()
    assert ops.fft_conv(torch.ones(0, 3, 5), torch.ones(2, 3, 5)).shape == (0, 2, 3, 5)


def test_bad_arguments() -> None:
    u = torch.ones(2, 3, 5)
    with pytest.raises(ValueError, match=r"k must have shape \(C, H=3, K\), got \(1, 4, 5\)"):
        ops.fft_conv(u, torch.ones(1, 4, 5))
    with pytest.raises(ValueError, match=r"k must have shape \(2C, H, K\) when bidirectional"):
        ops.fft_conv(u, torch.ones(1, 3, 5), bidirectional=True)
    with pytest.raises(ValueError, match="at least one tap"):
        ops.fft_conv(u, torch.ones(1, 3, 0))
