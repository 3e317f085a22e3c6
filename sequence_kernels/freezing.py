"""A copy of a module for inference, in which all that follows from parameters alone has been computed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from .arguments import values
from .ops.layouts import interleaved, paired
from .trees import tensors_of, with_tensors

Module = TypeVar("Module", bound=nn.Module)


@torch.inference_mode(False)  # what is made here serves later calls too, in inference mode or not
@torch.no_grad()
def freeze(module: Module, rate: float = 1.0) -> Module:
    """A copy in eval mode whose state-space systems and chunk matrices are constants and whose states are real.

    It computes what ``module`` computes, to rounding, and no longer discretises its parameters in every call. A part
    without such a system is copied as it is. A state of a frozen layer has the real and the imaginary parts of the
    layer's own next to each other, ``(..., 2 N)`` instead of complex ``(..., N)``: see ``frozen_state`` and
    ``thawed_state``.

    Args:
        module: any module, a layer, a model or one that holds some.
        rate: the sampling step that the systems are discretised for, in units of the one that they were trained with.

    A frozen module cannot be trained, and takes no ``rate`` but 1, in units of the one it was frozen for. Its systems
    keep their precision: convert the module before. Raises ValueError for a layer without a constant system, which is
    one with ``disc="dss"`` and no ``l_max``, and for a ``rate`` other than 1 where a layer knows none.
    """
    values.sampling_rate(rate)
    frozen = copied(module, {}).eval()
    for part in list(frozen.modules()):
        _fold(part)
    for part in list(frozen.modules()):
        become = getattr(part, "freeze_here", None)
        if become is not None:
            become(rate)
    return frozen.eval().requires_grad_(False)


def frozen_state(state: Any) -> Any:
    """The state of a module as that of what it was frozen to: a tree of the same structure, all real."""
    return with_tensors(state, map(_parts, tensors_of(state)))


def thawed_state(state: Any, like: Any) -> Any:
    """The inverse of ``frozen_state``; ``like``: a state of the module itself, as ``default_state()`` gives."""
    kinds = [t.is_complex() for t in tensors_of(like)]
    given = list(tensors_of(state))
    if len(given) != len(kinds):
        raise ValueError(f"state must hold {len(kinds)} tensors, as like does, got {len(given)}")
    pairs = zip(given, kinds, strict=True)
    return with_tensors(state, (paired(t) if is_complex else t for t, is_complex in pairs))


def _parts(t: Tensor) -> Tensor:
    return interleaved(t) if t.is_complex() else t


def copied(module: Module, known: dict[int, Any]) -> Module:
    """A deep copy, also of modules that keep a tensor with its graph, as pruning does. ``known``: deepcopy's memo."""
    kept = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(module, known | {id(value): value.detach() for value in kept})


def _fold(part: nn.Module) -> None:
    """Make parameters that are computed, by torch's parametrizations or pruning, what they are computed to be."""
    if parametrize.is_parametrized(part):
        # Not by remove_parametrizations: that takes them from the class, which the original has too.
        found = {name: getattr(part, name).detach().clone() for name in part.parametrizations}  # type: ignore[union-attr]
        part.__class__ = parametrize.type_before_parametrizations(part)
        del part.parametrizations
        for name, value in found.items():
            part.register_parameter(name, nn.Parameter(value))
    for hook in list(part._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(part, hook._tensor_name)
