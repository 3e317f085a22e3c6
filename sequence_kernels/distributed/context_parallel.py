"""Context parallelism: each rank holds a contiguous part of every sequence."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ..arguments import sequences
from ..awaited import Awaited, unsplit
from ..trees import mapped
from .exchange import GroupExchange

Module = TypeVar("Module", bound=nn.Module)


def context_parallel(
    model: Module, group: DeviceMesh | dist.ProcessGroup, *, equal_parts: bool = False
) -> Module:
    """Let ``model(x)`` take, on rank j of a group, part j of every sequence, and give that part of the outputs.

    Outputs, states and gradients are those of the whole sequences in one process; a parameter's gradient is the sum of
    those of all ranks: see ``sum_gradients``. A state that is given is the one before the whole sequences, the same on
    each rank; the one returned is that behind them, on each rank. ``step`` is not changed: a rank that has the state
    goes on alone.

    All ranks must call the model, and go backward through what it gave, equally often; a part may be empty.

    Args:
        model: a ``SequenceModule``, or a module with some in it; it is changed in place, and returned.
        group: a one-dimensional mesh, as ``mesh["cp"]``, or a process group.
        equal_parts: all ranks promise parts of the same length. Then nothing waits for lengths to arrive, which
            ``torch.compile`` needs. A broken promise is a ValueError, or NaN on a GPU and in a compiled graph.

    Raises ValueError for a module that cannot be split, by name, and for a mesh of several dimensions; and in calls for
    ``cu_seqlens``, ``reset``, ``attention_mask``, ``states_at``, a ``rate`` for each row or element, and ``lengths``
    together with a state.
    """
    if (found := unsplit(model)) is not None:
        name, reason = found
        raise ValueError(f"model cannot be split, because of {name or 'itself'}: {reason}")
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group must be a mesh of one dimension, got one of {group.ndim}")
        group = group.get_group()
    exchange = GroupExchange(group, equal_parts)
    for module, hands_states in _outermost(model):
        handing = _Handing(module, exchange)
        if hands_states:
            module.register_forward_pre_hook(handing.before, with_kwargs=True)
            module.register_forward_hook(handing.behind, with_kwargs=True)
        else:
            module.register_forward_pre_hook(handing.check, with_kwargs=True)
    return model


def sum_gradients(model: nn.Module, group: DeviceMesh | dist.ProcessGroup) -> None:
    """Add up the gradients of all ranks, in place: for a model that is neither in DDP nor in FSDP2.

    What is summed is the gradient of the sum of the ranks' losses. All ranks must have the same parameters.
    """
    group = group.get_group() if isinstance(group, DeviceMesh) else group
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together, group=group)
        for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _outermost(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The modules that carry a state and are in no other such, True; those that only hold them, False.

    A stack with a layer in it that looks ahead has no state as a whole: its layers are handed theirs one by one.
    """
    carries = hasattr(module, "unsplit_reason") and hasattr(module, "default_state")
    inside = [found for child in module.children() for found in _outermost(child)]
    if carries and (getattr(module, "causal", True) or not inside):
        yield module, True
        return
    if carries:
        yield module, False
    yield from inside


class _Handing:
    """The hooks of one module: before a call each part of its state becomes ``Awaited``."""

    def __init__(self, module: nn.Module, exchange: GroupExchange) -> None:
        self.names = tuple(inspect.signature(module.forward).parameters)
        self.exchange = exchange
        self.given = False

    def before(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any], dict[str, Any]]:
        x, state, called = self._called(args, kwargs)
        if state is None:
            make = getattr(module, "awaited_state", module.default_state)
            state = make(*sequences.Axes.of(module).batch_shape(x), device=x.device)
        return (x,), {**called, "state": mapped(lambda part: Awaited(part, self.exchange), state)}

    def check(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._called(args, kwargs)

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """x, the state and the other arguments, if they can be given."""
        called = {**dict(zip(self.names[1:], args[1:], strict=False)), **kwargs}
        x = args[0] if args else called.pop(self.names[0])
        state = called.pop("state", None)
        self.given = state is not None
        rate = called.get("rate")
        for name in sequences.WORDS:
            if called.get(name) is not None:
                raise ValueError(f"{name} cannot be given to a model that is split over ranks")
        if isinstance(rate, Tensor) and rate.dim():
            raise ValueError("rate must be one number for a model that is split over ranks")
        if self.given and called.get("lengths") is not None:
            raise ValueError(
                "lengths cannot be given together with a state to a model that is split over ranks: the state behind "
                "the last part would be that of the padding"
            )
        return x, state, called

    def behind(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor, Any]
    ) -> tuple[Tensor, Any]:
        y, after = output
        return y, after if self.given else None
