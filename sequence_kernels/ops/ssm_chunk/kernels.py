"""The chunk matrices and their adjoint by the kernels of the compiled libraries (csrc/ssm_chunk)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, ops

from ..dispatch import implement


def ssm_chunk(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    contiguous = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]
    return ops.sequence_kernels_native.ssm_chunk.default(*contiguous)


def ssm_chunk_backward(
    g_taps: Tensor, g_reads: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = ops.sequence_kernels_native.ssm_chunk_backward.default
    contiguous = [a.contiguous() if isinstance(a, Tensor) else a for a in others]
    return run(g_taps.contiguous(), g_reads, *contiguous)  # ssm_conv's g_reads is a transpose


for _library in ("cpu", "cuda"):
    implement("ssm_chunk", _library)(ssm_chunk)
    implement("ssm_chunk_backward", _library)(ssm_chunk_backward)
