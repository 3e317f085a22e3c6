"""Launches of Triton kernels of which two programs run: what is counted stands for all."""

from __future__ import annotations

import pytest
import torch

from . import on_ptx, skip_reason, triton_skip_reason
from .counting import TritonSampling
from .file import Latencies

no_tools = skip_reason() or triton_skip_reason()
pytestmark = pytest.mark.skipif(no_tools is not None, reason=str(no_tools))

LATENCIES = Latencies(arithmetic=4, special=24, tensor=33, shared=30, global_=1000, barrier=20)
ROWS = 64


@pytest.mark.parametrize(("size", "elements"), [(1024, 4), (1023, 1)])
def test_a_program_stands_for_the_others(size: int, elements: int) -> None:
    """Sizes that 16 divides let a thread load four elements at once, as on a GPU."""
    from sequence_kernels.ops.gated_rms_norm import triton as kernels

    machine = TritonSampling("cuda 80", LATENCIES, 2, ("sm_90",))
    x = torch.randn(ROWS, 1, size)
    with on_ptx(kernels, machine):
        kernels.gated_rms_norm(x, torch.ones(1, size), x, True, 1e-5)
    (launch,) = machine.launches
    counts = launch.counts
    assert (launch.kernel, launch.blocks) == ("gated_rms_norm_kernel", ROWS)
    assert counts["global_written_bytes"] == 4 * ROWS * size
    assert counts["global_read_bytes"] == 3 * 4 * ROWS * size  # x, z and the weight
    accesses = 4 * ROWS * 1024 / 32 / elements
    assert counts["global_accesses"] == accesses
    assert launch.cycles > 1000  # a load is waited for
    assert counts["instructions"] > counts["integer"] > 0
    registers, shared_bytes = launch.resources["sm_90"]
    assert 16 <= registers <= 255
    assert shared_bytes > 0  # sums of warps
