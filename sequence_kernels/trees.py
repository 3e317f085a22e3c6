"""States are trees: tensors in lists, tuples and dicts, with None where a part has no state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def mapped(function: Callable[..., Any], *trees: Any) -> Any:
    """What the function makes of the tensors at each place of trees of one structure; what is no tensor stays."""
    return mapped_as(Tensor, function, *trees)


def mapped_as(kind: type, function: Callable[..., Any], *trees: Any) -> Any:
    """``mapped`` of what is of that kind."""
    first = trees[0]
    if isinstance(first, kind):
        return function(*trees)
    if isinstance(first, (list, tuple)):
        return type(first)(mapped_as(kind, function, *parts) for parts in zip(*trees, strict=True))
    if isinstance(first, dict):
        return {key: mapped_as(kind, function, *(tree[key] for tree in trees)) for key in first}
    return first


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order."""
    found: list[Tensor] = []
    mapped(found.append, tree)
    return iter(found)


def with_tensors(tree: Any, values: Iterator[Tensor]) -> Any:
    """A state of the structure of this one, with other tensors."""
    return mapped(lambda _: next(values), tree)
