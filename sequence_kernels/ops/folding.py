"""``torch.vmap`` of an op without a loop: many calls of it become one, their axis folded into one that the op has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .layouts import by_head
from .signature import Argument, Signature


def vmap_rule(op: Callable[..., Any], of: Signature) -> Callable[..., Any]:
    """What ``torch.library.register_vmap`` takes.

    The axis is folded into the batch if all that differs between the calls has one, and all results: systems are then
    shared. Else into the heads. Where neither will do, as for the lengths of systems that differ, the op is called once
    for each.
    """
    letters = [name for name in ("*", "...", "B", "H") if all(name in _names(a) for a in of.results)]

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        count = len(of.tensors)
        mapped = [a for a, dim in zip(of.tensors, in_dims, strict=False) if dim is not None]
        fold = next((name for name in letters if all(name in _names(a) for a in mapped)), None)
        tensors = [
            None if t is None else _first(t, dim) for t, dim in zip(args[:count], in_dims, strict=False)
        ]
        if fold is None or info.batch_size == 0:
            return _one_by_one(op, info.batch_size, tensors, in_dims, args[count:])
        if fold in ("*", "..."):
            rank = max(
                t.dim() - (dim is not None) for t, dim in zip(tensors, in_dims, strict=False) if t is not None
            )
            for i, argument in enumerate(of.tensors):
                t, is_mapped = tensors[i], in_dims[i] is not None
                if t is not None and fold in _names(argument):
                    tensors[i] = _in_front(t, is_mapped, info.batch_size, rank if fold == "*" else None)
            out = op(*tensors, *args[count:])
            return out, (0 if isinstance(out, Tensor) else (0,) * len(out))
        heads, groups = _heads(of, tensors, in_dims), 0
        sums = any("G" in a.dims for a in of.results)  # over the heads of a group, for each call apart
        regrouped = sums or any(argument.axis(fold) is None for argument in mapped)
        for i, argument in enumerate(of.tensors):
            t, letter = tensors[i], _folded(argument, fold)
            axis = None if letter is None else argument.axis(letter)
            if t is not None and regrouped and "G" in argument.dims:
                axis, groups = argument.axis("G"), t.shape[-2]
                t = by_head(t, heads)
            if t is not None and axis is not None:
                t = t if in_dims[i] is not None else t.unsqueeze(0).expand(info.batch_size, *t.shape)
                axis += t.dim() - 1 if axis < 0 else 0
                tensors[i] = t.movedim(0, axis).flatten(axis, axis + 1)
        out = op(*tensors, *args[count:])
        results = [
            _unfolded(t, a.axis(letter), info.batch_size)
            if (letter := _folded(a, fold)) is not None
            else _unfolded(t, a.axis("G"), info.batch_size).unflatten(-2, (-1, groups)).sum(-3)
            for t, a in zip((out,) if isinstance(out, Tensor) else out, of.results, strict=True)
        ]
        return (results[0], 0) if isinstance(out, Tensor) else (tuple(results), (0,) * len(results))

    return rule


def _names(argument: Argument) -> tuple[str, ...]:
    """The axes of the argument into which others can be folded."""
    front = [mark for mark in ("*", "...") if argument.dims.startswith(mark)]
    dims = argument.dims.replace("G", "H").replace(
        "K", "H"
    )  # groups that differ are made heads, or more groups
    return (*front, *(letter for letter in "BH" if letter in dims))


def _folded(argument: Argument, fold: str) -> str | None:
    """The axis of the argument that the calls' one joins: with heads, groups of heads next to each other."""
    letter = "K" if fold == "H" and "K" in argument.dims else fold
    return None if argument.axis(letter) is None else letter


def _heads(of: Signature, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]) -> int:
    for argument, t, dim in zip(of.tensors, tensors, in_dims, strict=False):
        axis = argument.axis("H")
        if t is not None and axis is not None:
            return t.shape[axis + (dim is not None and axis >= 0)]
    return 0


def _first(t: Tensor, dim: int | None) -> Tensor:
    return t if dim is None else t.movedim(dim, 0)


def _in_front(t: Tensor, mapped: bool, count: int, rank: int | None) -> Tensor:
    """With the calls' axis before all others: of ``rank`` others where they broadcast, which saves copies."""
    if rank is None:
        return t if mapped else t.unsqueeze(0).expand(count, *t.shape)
    return t.reshape(count, *(1,) * (rank + 1 - t.dim()), *t.shape[1:]) if mapped else t


def _unfolded(t: Tensor, axis: int | None, count: int) -> Tensor:
    assert axis is not None
    return t.unflatten(axis, (count, t.shape[axis] // count)).movedim(axis - (axis < 0), 0)


def _one_by_one(
    op: Callable[..., Any],
    count: int,
    tensors: Sequence[Tensor | None],
    in_dims: Sequence[int | None],
    rest: Any,
) -> tuple[Any, Any]:
    if count == 0:  # of shapes that are those of one call of zeros
        one = [
            t if t is None or dim is None else t.new_zeros((1, *t.shape[1:]))
            for t, dim in zip(tensors, in_dims, strict=False)
        ]
        out, dims = _one_by_one(op, 1, one, in_dims, rest)
        return (out[:0] if isinstance(out, Tensor) else tuple(t[:0] for t in out)), dims
    outs = []
    for i in range(count):
        here = (t if t is None or dim is None else t[i] for t, dim in zip(tensors, in_dims, strict=False))
        outs.append(op(*here, *rest))
    if isinstance(outs[0], Tensor):
        return torch.stack(outs), 0
    stacked = tuple(torch.stack(results) for results in zip(*outs, strict=True))
    return stacked, (0,) * len(stacked)
