"""Steppers of modules that are no SequenceModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .module import SequenceModule
from .stepping.stepper import Stepper


def stepper(
    model: nn.Module,
    batch_shape: Sequence[int] = (),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    d_model: int | None = None,
    **kwargs: Any,
) -> Stepper:
    """Any module made ready to run through time: see ``Stepper``, which has the other arguments.

    ``model`` is a SequenceModule; a module with ``step(x, state)``, which returns the output and the next state, and
    ``default_state(*batch_shape, device=None)``; or an ``nn.Sequential`` of such modules and of others that map each
    time step by itself, whose state is then the list of theirs.

    Args:
        d_model: the width of its input, if neither it nor its first part says that (``d_model``, ``in_features``).

    Raises TypeError for a module that cannot be stepped, ValueError where the width is not known.
    """
    if not isinstance(model, SequenceModule):
        steps = isinstance(model, nn.Module) and hasattr(model, "step") and hasattr(model, "default_state")
        if not steps and not isinstance(model, nn.Sequential):
            raise TypeError(
                "model must be a SequenceModule, a module with step and default_state, or an nn.Sequential, "
                f"got {type(model).__name__}"
            )
        width = _width(model) if d_model is None else d_model
        if width is None:
            raise ValueError(
                f"d_model must be given: a {type(model).__name__} does not say how wide its input is"
            )
        model = _Stepped(model, width) if steps else _Chain(cast("nn.Sequential", model), width)
    elif d_model not in (None, model.d_model):
        raise ValueError(f"d_model must be that of the model, {model.d_model}, got {d_model}")
    return model.stepper(batch_shape, device, dtype, **kwargs)


def _width(module: nn.Module) -> int | None:
    for part in module.modules():
        for name in ("d_model", "in_features"):
            if isinstance(width := getattr(part, name, None), int):
                return width
    return None


class _Stepped(SequenceModule):
    """A module by its own ``step``."""

    def __init__(self, module: Any, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.module: Any = module

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return self.module.default_state(*batch_shape, device=device)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.module.step(x, state)


class _Chain(SequenceModule):
    """The parts of an ``nn.Sequential``, one after another."""

    def __init__(self, parts: Any, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.parts: Any = parts

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> Any:
        return [
            part.default_state(*batch_shape, device=device) if _steps(part) else None for part in self.parts
        ]

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        after = []
        for part, before in zip(self.parts, state, strict=True):
            x, next_state = part.step(x, before) if _steps(part) else (part(x), None)
            after.append(next_state)
        return x, after


def _steps(part: Any) -> bool:
    return hasattr(part, "step") and hasattr(part, "default_state")
