"""Where a backend's kernels run: the tests of every backend make CPU tensors, and compare on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops import dispatch
from tests.instruction_sets import OF_ALL, available

#: Those whose kernels run on GPUs alone.
GPU_BACKENDS = [b for b in ops.BACKENDS if not dispatch.runs_on(b, "cpu")]


def backends(op: str) -> list[str]:
    """The implementations of the op that can run here on CPU tensors."""
    return [b for b in ops.BACKENDS if dispatch._unavailable(op, b, "cpu", torch.float64) is None]


def gpu_backends(op: str) -> list[Any]:
    """The op's backends for CUDA tensors, as parameters that are skipped where they cannot run."""
    parameters = []
    for backend in GPU_BACKENDS:
        if backend in dispatch._implementations[op]:
            marks = [pytest.mark.gpu, pytest.mark.checks("GPU")]
            if torch.cuda.is_available():
                reason = dispatch._unavailable(op, backend, "cuda", torch.float64)
                marks.append(pytest.mark.skipif(reason is not None, reason=str(reason)))
            parameters.append(pytest.param(backend, marks=marks))
    return parameters


def on_every_instruction_set(run: Callable[[], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """What ``run`` gives with each set that this CPU has, while it holds; the same with one thread and with three."""
    threads = torch.get_num_threads()
    try:
        for _ in available(OF_ALL):
            runs = []
            for count in (1, 3):
                torch.set_num_threads(count)
                runs.append(run())
            for one, many in zip(*runs, strict=True):
                assert torch.equal(one, many), "the number of threads changes a result"
            yield runs[0]
    finally:
        torch.set_num_threads(threads)


def device_of(backend: str) -> str:
    return "cuda" if backend in GPU_BACKENDS else "cpu"


def run(op: Callable[..., Tensor], *arguments: Any, backend: str, **options: Any) -> Tensor:
    """Call the op on the backend's device; the result is on the CPU."""
    device = device_of(backend)
    moved = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
    return op(*moved, backend=backend, **options).cpu()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def spread_poles(*shape: int) -> Tensor:
    return torch.complex(-0.5 - torch.rand(*shape).double(), 3 * torch.randn(*shape).double())
