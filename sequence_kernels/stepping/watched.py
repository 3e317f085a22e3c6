"""Whether what a stepper read of its module has changed since."""

from __future__ import annotations

import functools
import threading
from collections.abc import Set
from operator import attrgetter
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import internals

_EVERY = 64  # quick looks to a thorough one

_version = attrgetter("_version")
_alive: WeakSet[Watched] = WeakSet()
_lock = threading.Lock()


class Watched:
    """The tensors and parts of a module, to be compared later.

    A quick look finds tensors, parts and hooks that were replaced, writes that torch counts (``Tensor._version``), and
    steps of optimizers, of which fused ones write without a count. A thorough look also finds tensors that were given
    other memory (``parameter.data = ...``), writes to tensors made in inference mode, which have no count, hooks of
    parts that had none, and parts with another class, or a ``forward`` or ``step`` of their own.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parts = parts = list(module.modules())
        tensors = [held for part in parts for held in (part._parameters, part._buffers)]
        hooks = [held for part in parts for held in (part._forward_hooks, part._forward_pre_hooks)]
        self._filled: list[Any] = [
            held for held in (*tensors, *(part._modules for part in parts), *hooks) if held
        ]
        self._contents = [dict(held) for held in self._filled]
        self._hookless = [held for held in hooks if not held]
        self._ways = self._ways_now()
        read = {id(value): value for held in tensors for value in held.values() if value is not None}
        self._ids = read.keys()
        self._counted = [value for value in read.values() if not value.is_inference()]
        self._versions = list(map(_version, self._counted))
        self._uncounted = [(value, value.clone()) for value in read.values() if value.is_inference()]
        self._placed = [value for value in read.values() if type(value) in (Tensor, nn.Parameter)]
        self._addresses = list(map(Tensor.data_ptr, self._placed))
        self._looks = 0
        self._changed = False
        _listen()
        with _lock:
            _alive.add(self)

    def note_change(self) -> None:
        """Have it changed, whatever a look finds."""
        self._changed = True

    def changed(self) -> bool:
        """A quick look, and a thorough one now and then."""
        self._looks = looks = self._looks + 1
        if looks % _EVERY == 0:
            return self.thoroughly_changed()
        # Comparing dicts is six times faster than comparing what each of them holds by ``is``. It begins with that, and
        # only goes on to ``==`` where they differ: then one number is the same if it is equal, and several, or some of
        # another shape or device, raise.
        try:
            return (
                self._changed
                or self._filled != self._contents
                or list(map(_version, self._counted)) != self._versions
            )
        except RuntimeError:
            return True

    def thoroughly_changed(self) -> bool:
        """A thorough look, remembered."""
        self._looks = 0
        self._changed = (
            self.changed()
            or list(map(Tensor.data_ptr, self._placed)) != self._addresses
            or any(self._hookless)
            or self._ways_now() != self._ways
            or not all(torch.equal(now, then) for now, then in self._uncounted)
        )
        return self._changed

    def _ways_now(self) -> list[Any]:
        """How each part is called."""
        return [(type(part), vars(part).get("forward"), vars(part).get("step")) for part in self._parts]

    def note_written(self, ids: Set[int]) -> None:
        """Hear of tensors that were written to."""
        self._changed = self._changed or not self._ids.isdisjoint(ids)


@functools.cache
def _listen() -> None:
    """Hear of each step of each optimizer from now on."""
    register_optimizer_step_post_hook(_after_step)


@internals.not_compiled
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    with _lock:
        watched = list(_alive)
    if watched:
        written = frozenset(
            id(tensor)
            for group in optimizer.param_groups
            for tensor in group["params"]
            if tensor.grad is not None
        )
        for one in watched:
            one.note_written(written)
