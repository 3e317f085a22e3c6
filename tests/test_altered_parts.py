"""A stepper of a module of which a part was altered: it takes the part as it is, and not for what it was."""

from __future__ import annotations

import copy
import functools
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sequence_kernels import SequenceModule

from .test_law import WIDTH, Factory, cases, close, keeps_length
from .test_stepper import model, stepped

#: With each kind of residual and norm.
STACKS = [
    pytest.param(functools.partial(model, layer="ff", **arguments), id=name)
    for name, arguments in {
        "transposed-decay": {"transposed": True, "residual": "D"},
        "postnorm": {"prenorm": False, "residual": "R", "dropout": 0.1},
        "batch-norm-highway": {"norm": "batch", "residual": "H"},
        "affine": {"norm": {"_name_": "layer", "scalar": False}, "transposed": True, "residual": "A"},
        "no-residual": {"residual": "N", "norm": None},
    }.items()
]
every = pytest.mark.parametrize("make", cases(lambda m: m.causal and keeps_length(m)) + STACKS)


def louder(y: Any) -> Any:
    """What an altered part gives: of a sequence module without its state."""
    return (louder(y[0]), *y[1:]) if isinstance(y, tuple) else None if y is None else 1.5 * y + 0.25


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def replaced(part: nn.Module, name: str) -> None:
    original = getattr(part, name)
    setattr(part, name, lambda *args, **kwargs: louder(original(*args, **kwargs)))


def subclass(part: nn.Module, name: str) -> None:
    """As adapters do: ``LoraLinear(nn.Linear)``."""
    base: Any = type(part)
    body = {name: lambda self, *args, **kwargs: louder(getattr(base, name)(self, *args, **kwargs))}
    part.__class__ = types.new_class("Altered", (base,), exec_body=lambda namespace: namespace.update(body))


def pruned(part: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    prune.random_unstructured(part, name, amount=0.5)


ALTERATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "hook": lambda part: part.register_forward_hook(lambda _, x, y: louder(y)),
    "pre-hook": lambda part: part.register_forward_pre_hook(lambda _, x: louder(x)),
    "forward": lambda part: replaced(part, "forward"),
    "subclass": lambda part: subclass(part, "forward"),
    "step": lambda part: replaced(part, "step"),
    "subclass-step": lambda part: subclass(part, "step"),
}
#: Of a parameter.
REWRITTEN: dict[str, Callable[[nn.Module, str], Any]] = {
    "parametrized": lambda part, name: parametrize.register_parametrization(part, name, Twice()),
    "pruned": pruned,
}


def same(module: SequenceModule) -> Tensor:
    """The outputs of the module's own step, after the stepper's, steps and blocks, were found to be these."""
    x = torch.randn(2, 4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want, last = stepped(module, x, (2,))
    with torch.no_grad():
        stepper = module.stepper((2,), dtype=torch.float64)
        close(torch.stack([stepper.step(x[:, t]) for t in range(2)], 1), want[:, :2], 1e-10)
        close(stepper.forward(x[:, 2:]), want[:, 2:], 1e-10)
        close(stepper.state, last, 1e-10)
    return want


def parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Parts and their paths: of those alike in several blocks the first, and no part of a layer in a block.

    Layers are walked over by themselves.
    """
    seen = set()
    for path, part in module.named_modules():
        place = re.sub(r"layers\.\d+", "layers", path), type(part)
        inside = re.search(r"\blayer\.", path) is not None
        if not isinstance(part, nn.ModuleList) and not inside and place not in seen:
            seen.add(place)
            yield path, part


def altered(make: Factory) -> Iterator[tuple[str, SequenceModule]]:
    """Copies of the module with each part altered in each way in turn, and a word for it."""
    whole = make().double()
    for path, part in parts(whole):
        for kind, alter in ALTERATIONS.items():
            if "step" in kind and not hasattr(part, "step"):
                continue
            module = copy.deepcopy(whole)
            alter(module.get_submodule(path))
            yield f"{kind} of {path or 'the whole'}", module
        for name, _ in part.named_parameters(recurse=False):
            if isinstance(part, nn.RNNBase):  # torch's own are not made for it
                continue
            for kind, rewrite in REWRITTEN.items():
                module = copy.deepcopy(whole)
                rewrite(module.get_submodule(path), name)
                yield f"{kind} {name} of {path or 'the whole'}", module


@every
def test_each_part_in_turn(make: Factory) -> None:
    for what, module in altered(make):
        try:
            same(module)
        except Exception as error:
            error.add_note(f"after altering: {what}")
            raise
