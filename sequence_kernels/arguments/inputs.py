"""What was wrong with the input or the state of a module, in its caller's words.

Parts of a module see weights, taps and rows; what they say of these is of little use to who gave ``x``. So when a call
has failed, its ``x`` and ``state`` are looked at; while calls succeed this costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..awaited import begun
from ..ops.checks import REAL_OF
from . import sequences


def explain(
    module: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
) -> None:
    """Raise what is wrong with the ``x`` or ``state`` of a ``forward`` or ``step`` that failed; or do nothing."""
    if method not in ("forward", "step") or not hasattr(module, "channels_first"):
        return
    word = re.match(r"\w*", str(error))
    arguments = {"x", "state", "lengths", *sequences.WORDS} | (module.takes(method) or set())
    if word is not None and word[0] in arguments:  # named by who looked before anything was computed
        return
    given = dict(zip(("x", "state"), args, strict=False)) | kwargs
    try:
        fault = next(_faults(module, method, given.get("x"), begun(given.get("state"))), None)
    except Exception:  # a module that cannot say what it expects: what it raised first is what counts
        return
    if fault is not None:
        raise fault from error


def of_dtype(x: Tensor, expected: torch.dtype | None = None) -> None:
    """Raise TypeError unless x is real and, outside of autocast, of the dtype that the parameters have."""
    casts = torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)
    if x.dtype == expected or (casts and x.is_floating_point()):
        return
    if expected is not None:
        raise TypeError(f"x must be {expected} as the parameters are, got {x.dtype}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating-point dtype, got {x.dtype}")


def of_width(x: Tensor, width: int, axis: int = -1) -> None:
    """Raise ValueError unless the axis of x, -1 or -2, has this size; ``explain`` then says what shape x must have."""
    if x.dim() < -axis or x.shape[axis] != width:
        raise ValueError(f"d_model={width}, but the channels of x are in its shape {tuple(x.shape)}")


def _faults(module: Any, method: str, x: Any, state: Any) -> Iterator[Exception]:
    """The faults of x, and of a state beside a right x; an x of None is for the module to judge."""
    step = method == "step"
    if isinstance(x, Tensor):
        yield from _faults_of_x(module, x, step)
    elif x is not None:
        yield TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if state is not None and module.causal:
        bare = module.default_state()
        if isinstance(x, Tensor):
            batch = x.shape[: -1 if step else -2]
        elif isinstance(bare, Tensor) and isinstance(state, Tensor):
            batch = state.shape[: max(state.dim() - bare.dim(), 0)]
        else:
            batch = torch.Size()
        device = x.device if isinstance(x, Tensor) else None
        expected = module.default_state(*batch, device=device)
        yield from _faults_of_state("state", state, expected, len(batch), getattr(x, "dtype", None))


def _faults_of_x(module: Any, x: Tensor, step: bool) -> Iterator[Exception]:
    channels_first, width = not step and module.channels_first, vars(module).get("d_model")
    wanted = f"d_model={width}"
    form = wanted if step else f"{wanted}, length" if channels_first else f"length, {wanted}"
    if x.dim() < (1 if step else 2) or width not in (None, x.shape[-2 if channels_first else -1]):
        yield ValueError(f"x must have shape (..., {form}), got {tuple(x.shape)}")
    parameters = [p for p in module.parameters() if p.is_floating_point() or p.is_complex()]
    if parameters and parameters[0].device != x.device:
        yield ValueError(f"x is on {x.device}, but the parameters are on {parameters[0].device}")
    kinds = {REAL_OF.get(p.dtype, p.dtype) for p in parameters}
    try:
        of_dtype(x, *(kinds if len(kinds) == 1 else ()))
    except TypeError as fault:
        yield fault


def _faults_of_state(
    name: str, given: Any, expected: Any, batch: int, dtype: torch.dtype | None
) -> Iterator[Exception]:
    """Where the state differs from what ``default_state`` gives; a size that is 0 there may grow.

    ``dtype``: of x, which a state may have too.
    """
    if isinstance(expected, (list, tuple)):
        known = (len(expected), len(expected) + 1) if _is_cache(expected, batch) else (len(expected),)
        if not isinstance(given, (list, tuple)) or len(given) not in known:
            got = type(given).__name__ + (f" of {len(given)}" if isinstance(given, (list, tuple)) else "")
            kind = type(expected).__name__
            yield TypeError(
                f"{name} must be a {kind} of {len(expected)}, as default_state() gives, got {got}"
            )
            return
        for i, (part, whole) in enumerate(zip(given, expected, strict=False)):
            yield from _faults_of_state(f"{name}[{i}]", part, whole, batch, dtype)
    elif isinstance(expected, Tensor):
        sizes = [n if n or i < batch else "any" for i, n in enumerate(expected.shape)]
        form = ", ".join(map(str, sizes))
        if not isinstance(given, Tensor):
            yield TypeError(f"{name} must be a tensor of shape ({form}), got {type(given).__name__}")
        elif given.dim() != len(sizes) or any(
            n not in ("any", m) for n, m in zip(sizes, given.shape, strict=True)
        ):
            yield ValueError(f"{name} must have shape ({form}), got {tuple(given.shape)}")
        elif given.dtype not in (expected.dtype, dtype):
            yield TypeError(f"{name} must be {expected.dtype}, got {given.dtype}")
        elif given.device != expected.device:
            yield ValueError(f"{name} is on {given.device}, but must be on {expected.device}")


def _is_cache(expected: Any, batch: int) -> bool:
    """Whether it holds tensors that grow; then which of their elements can be seen may come behind them."""
    return bool(expected) and all(isinstance(part, Tensor) and 0 in part.shape[batch:] for part in expected)
