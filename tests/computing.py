"""What torch computes, call by call: on a GPU each such call launches a kernel, or some of ours."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


def computes(func: Any) -> bool:
    """False of an op that makes a view or allocates."""
    return not func.is_view and "empty" not in func._opname and func._opname not in ("detach", "_unsafe_view")


class Computing(TorchDispatchMode):
    """Within it, the ``names`` of the ops that compute, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if computes(func):
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))
