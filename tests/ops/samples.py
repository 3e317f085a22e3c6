"""Sample calls of every op, as its own test has them, for the tests that hold for all of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_kernels import ops

from .sample import Sample

SAMPLES: dict[str, Sample] = {}
for _test in sorted(Path(__file__).parent.glob("*/test_*.py")):
    if _test.stem == f"test_{_test.parent.name}":
        SAMPLES |= importlib.import_module(f"{__package__}.{_test.parent.name}.{_test.stem}").SAMPLES


class Call(NamedTuple):
    """One call of a registered op."""

    op: Any
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]


class Recorded(TorchDispatchMode):
    """Within it, all calls of registered ops are noted in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "sequence_kernels":
            results = tuple(out) if isinstance(out, (tuple, list)) else (out,)
            self.calls.append(Call(func, tuple(args), results))
        return out


def every_call() -> list[Call]:
    """Calls of every registered op, as the samples and their gradients make them; those in place from the others."""
    with Recorded() as recorded:
        for sample in SAMPLES.values():
            inputs = [t.clone().requires_grad_() for t in sample.tensors]
            result = sample.function(*inputs)
            results = result if isinstance(result, tuple) else (result,)
            torch.autograd.grad([r.abs().sum() for r in results], inputs, allow_unused=True)
        for op, args, _ in list(recorded.calls):
            if f"{op._opname}_" in ops.operations():
                in_place = getattr(torch.ops.sequence_kernels, f"{op._opname}_").default
                given = dict(zip((a.name for a in op._schema.arguments), args, strict=True))
                arguments = [given.get(a.name) for a in in_place._schema.arguments]
                with torch.no_grad():
                    in_place(*(a.clone() if isinstance(a, Tensor) else a for a in arguments))
    return [
        Call(op, *([t.detach() if isinstance(t, Tensor) else t for t in ts] for ts in rest))
        for op, *rest in recorded.calls
    ]
