"""A stand-in for a CUDA graph on any device: calls recorded with the tensors they read and wrote, and made again.

Like a graph it knows addresses and not names: a value that Python computed, or a tensor that came later, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sequence_kernels.ops.dispatch import implementation, use_backend
from sequence_kernels.ops.registration import NAMESPACE
from sequence_kernels.stepping.graphs import CAPTURES

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")  # for the device: a capture refuses them


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:  # what it is made of
            with self:
                return implementation(func._opname, args[-1])(*args[:-1])
        if func._opname in WAITS:
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            given = {_memory(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and _memory(old) not in given:  # else a view, or written in place
                    old.copy_(new)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def capture(function: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """What ``sequence_kernels.stepping.graphs.cuda_graph`` does, on a tape."""
    for _ in range(3):
        function()
    with Tape() as tape:
        output = function()
    return tape.replay, output


@contextmanager
def taped() -> Iterator[None]:
    """Steppers on the CPU take their steps by tapes, with plain torch, and like on a GPU look at no index."""
    unseen = patch("sequence_kernels.ops.checks.integers", lambda *arguments: None)
    with patch.dict(CAPTURES, cpu=capture), unseen, use_backend("torch"):
        yield
