"""The chunk matrices of diagonal-plus-low-rank models by the C++ kernels (csrc/ssm_chunk)."""

from __future__ import annotations

from torch import Tensor, ops

from ..dispatch import implement


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


@implement("ssm_chunk", "cpu")
def ssm_chunk(
    a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, chunk: int, tail: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return ops.sequence_kernels_native.ssm_chunk.default(*_contiguous(a, p, q, b, c), chunk, tail)


@implement("ssm_chunk_backward", "cpu")
def ssm_chunk_backward(
    g_taps: Tensor,
    g_reads: Tensor,
    g_e_in: Tensor,
    g_powers: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    chunk: int,
    tail: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return ops.sequence_kernels_native.ssm_chunk_backward.default(
        g_taps.contiguous(),
        g_reads,  # read at any strides: ssm_conv's gradient is its transpose
        *_contiguous(g_e_in, g_powers, a, p, q, b, c),
        chunk,
        tail,
    )
