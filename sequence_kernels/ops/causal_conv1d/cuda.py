"""The short causal convolution and its adjoint by the CUDA kernels (csrc/causal_conv1d)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..dispatch import implement
from . import cpu, reference

#: Of a channel: a block keeps the inputs that its elements need in shared memory.
MOST_TAPS = 32


def _of_few_taps(op: str, native: Callable[..., Any], weight: int) -> Callable[..., Any]:
    """The kernels where they can serve the call, whose argument number ``weight`` are the taps; else plain torch."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        serves = native if arguments[weight].shape[1] <= MOST_TAPS else getattr(reference, op)
        return serves(*arguments)

    return run


for _op, _last in (("causal_conv1d", False), ("causal_conv1d_channels_last", True)):
    implement(_op, "cuda")(_of_few_taps(_op, cpu.forward(_last), 1))
    _adjoint = f"{_op}_backward"
    implement(_adjoint, "cuda")(_of_few_taps(_adjoint, cpu.backward(_last), 3))
