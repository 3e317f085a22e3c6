"""From declarations to calls that can be timed, and the check that two of them give the same answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness.declare import BOTH, Bench, Inputs, Peer

Side = Bench | Peer


@dataclass(frozen=True)
class Prepared:
    """A call of no arguments, and the names of what it returns: outputs, then gradients if asked for."""

    call: Callable[[], tuple[Tensor, ...]]
    names: tuple[str, ...]
    restart: Callable[[], None]
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def prepare(
    side: Side,
    wrt: Iterable[str],
    inputs: Inputs,
    mode: str,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Prepared:
    """The forward pass, or the forward pass and the gradients to `wrt` for one fixed cotangent."""
    run = side.run
    own = dict(side.setup({name: _own(value) for name, value in inputs.items()}))
    restart = partial(side.restart, own)
    if mode != BOTH:
        with around():
            outputs = _tuple(run(own))
        return Prepared(lambda: _tuple(run(own)), _names(outputs), restart, around)
    leaves = dict(_leaves(own, wrt))
    for leaf in leaves.values():
        leaf.requires_grad_()
    with around(), torch.no_grad():
        cotangents = [_cotangent(out) for out in _tuple(run(own))]

    def both() -> tuple[Tensor, ...]:
        outputs = _tuple(run(own))
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        return (*(out.detach() for out in outputs), *gradients)

    return Prepared(both, (*_names(cotangents), *leaves), restart, around)


def difference(ours: Prepared, theirs: Prepared) -> float:
    """The largest norm-wise relative difference between what both return under the same name; NaN if any is."""
    ours.restart()
    theirs.restart()
    with ours.around():
        a = dict(zip(ours.names, ours.call(), strict=True))
    with theirs.around():
        b = dict(zip(theirs.names, theirs.call(), strict=True))
    shared = [name for name in a if a[name] is not None and b.get(name) is not None]
    gaps = [_relative(name, a[name], b[name]) for name in shared]
    return max(gaps, key=lambda gap: (math.isnan(gap), gap))


def _relative(name: str, a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"{name} has shape {tuple(b.shape)} there and {tuple(a.shape)} here")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
    a, b = a.to(wide), b.to(wide)
    gap, size = torch.linalg.vector_norm(a - b).item(), torch.linalg.vector_norm(b).item()
    return gap / size if size else gap


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _leaves(own: Inputs, wrt: Iterable[str]) -> Iterable[tuple[str, Tensor]]:
    for name in wrt:
        value = own[name]
        if isinstance(value, nn.Module):
            yield from (
                (f"{name}.{key}", each) for key, each in value.named_parameters() if each.requires_grad
            )
        else:
            yield name, value


def _names(outputs: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(f"output {i}" for i in range(len(outputs)))


def _tuple(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _cotangent(out: Tensor) -> Tensor:
    draw = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    return draw.to(out.device)
