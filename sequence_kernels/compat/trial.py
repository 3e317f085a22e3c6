"""Whether a layer and the one that is to stand for it compute the same: both are run on what is drawn here."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .install import adopt

#: How far apart outputs may be, relative to the largest value.
NEAR = {torch.float32: 1e-4, torch.float64: 1e-5}

_FAR = "on a trial its output and ours are {:.2g} apart, relative to the largest value"
_LENGTHS = (40, 11)  # the longest first: S4 prepares its C for it
_STEPS = 5

#: Sums over poles that leave out the conjugate half of each pair: see ``compare``.
_INCOMPLETE = ("cauchy_naive", "cauchy_slow")


class DifferenceError(ValueError):
    """Two layers do not compute the same, or one of them fails."""


def compare(original: Any, serve: Callable[[Any], Any]) -> str | None:
    """Raise ``DifferenceError`` unless the layer and what ``serve`` makes of it agree, at two lengths, in evaluation.

    Copies are compared: in float64, where 1e-5 of the largest value is the limit, or if the layer cannot be run in it
    in float32, where it is 1e-4. Where the layer's own sum over poles leaves out one half of each conjugate pair, as
    ESPnet's does without its extension, the complete sum counts, which is that of the layer's own ``step``.

    Returns a remark where the layer disagrees with itself: its forward with the complete sum, or its step with its
    forward.
    """
    weight = next(original.parameters())
    if weight.is_meta:
        raise DifferenceError("its parameters are on the meta device: there is nothing to try it on")
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        remark = _forwards(original, serve)
        steps = _steps_apart(original, serve)
        differ = steps is not None and not steps <= NEAR[torch.float32]
        if _ran(original) and (differ or steps is None):
            with _complete_sum(original):
                dtype, apart = _apart(original, serve, as_new=False)
            if not apart <= NEAR[dtype]:
                raise DifferenceError(
                    f"{_FAR.format(apart)}, with its C as it is for sequences of its length"
                )
        if differ and remark is None:
            remark = f"its own step is {steps:.2g} away from its forward; ours is not"
        return remark


def _forwards(original: Any, serve: Callable[[Any], Any]) -> str | None:
    dtype, apart = _apart(original, serve)
    if apart <= NEAR[dtype]:
        return None
    incomplete = _incomplete_sum(original)
    if incomplete is not None:
        with _complete_sum(original):
            dtype, complete = _apart(original, serve)
        if complete <= NEAR[dtype]:
            return f"its own forward is {apart:.2g} away: {incomplete} leaves out half of each conjugate pair"
    raise DifferenceError(_FAR.format(apart))


#: Buffers that hold the length for which C is stored, and what is kept of calls in their precision.
_LENGTH, _KEPT = ("L", "l_kernel"), ("omega", "z")


def _ran(module: nn.Module) -> bool:
    """Whether C is stored for a length: a layer's own code then computes for all of it in each call."""
    return any(int(buffer) for name, buffer in module.named_buffers() if name.rpartition(".")[2] in _LENGTH)


def twin(module: Any, dtype: torch.dtype, as_new: bool) -> Any:
    """A copy in evaluation mode and another precision; of one that holds computed tensors too.

    ``as_new``: as if its C had never been stored for a length.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()

    def cast(t: Tensor) -> Tensor:  # ``to`` would make complex parameters real
        return t.to(dtype.to_complex() if t.is_complex() else dtype if t.is_floating_point() else t.dtype)

    made = copy.deepcopy(module, memo)._apply(cast).eval()
    for part in made.modules():
        for name in _KEPT:
            vars(part).pop(name, None)
    if as_new:
        for name, buffer in made.named_buffers():
            if name.rpartition(".")[2] in _LENGTH:
                buffer.zero_()
    return made


def _apart(original: Any, serve: Callable[[Any], Any], as_new: bool = True) -> tuple[torch.dtype, float]:
    """The largest difference of the outputs over the lengths, in float64 if the layer can be run in it."""
    try:
        return torch.float64, _apart_in(original, serve, torch.float64, as_new)
    except (DifferenceError, RuntimeError, TypeError):
        return torch.float32, _apart_in(original, serve, torch.float32, as_new)


def _apart_in(original: Any, serve: Callable[[Any], Any], dtype: torch.dtype, as_new: bool) -> float:
    theirs, ours = twin(original, dtype, as_new), serve(twin(original, dtype, as_new)).eval()
    worst = 0.0
    for length in _lengths(ours) if as_new else _LENGTHS[1:]:
        x = drawn(ours, length, dtype)
        worst = max(worst, _distance(_tried("its own", theirs, x), _tried("our", ours, x)))
    return worst


def _tried(whose: str, layer: Any, x: Tensor) -> Any:
    try:
        return layer(x)
    except Exception as error:
        raise DifferenceError(f"{whose} forward fails on a trial: {type(error).__name__}: {error}") from error


def _lengths(ours: Any) -> tuple[int, ...]:
    l_max = getattr(ours, "l_max", None)
    return (l_max + 3, *_LENGTHS) if isinstance(l_max, int) and l_max < 500 else _LENGTHS


def drawn(ours: Any, length: int, dtype: torch.dtype) -> Tensor:
    """Two sequences for a layer of ours."""
    weight = next(ours.parameters())
    x = torch.randn(2, length, ours.d_model, generator=torch.Generator().manual_seed(length), dtype=dtype)
    x = x.to(weight.device)
    return x.mT.contiguous() if ours.channels_first else x


def _distance(want: Any, got: Any) -> float:
    """Of outputs, which must be of the same kind: a tensor alone, or one with a state."""
    if _kind(want) != _kind(got):
        raise DifferenceError(f"its forward returns {_kind(want)}, ours {_kind(got)}")
    want, got = (value if isinstance(value, Tensor) else value[0] for value in (want, got))
    if want.shape != got.shape:
        raise DifferenceError(f"its output is {tuple(want.shape)} on a trial, ours {tuple(got.shape)}")
    return _relative(float((got - want).abs().max()), float(want.abs().max()))


def _relative(difference: float, size: float) -> float:
    """Infinite unless both are numbers, so that no comparison with it passes."""
    return difference / max(size, 1e-30) if math.isfinite(difference) and math.isfinite(size) else math.inf


def _kind(output: Any) -> str:
    if isinstance(output, Tensor):
        return "a tensor alone"
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        return "a tensor and a state"
    return f"{type(output).__name__}"


def _steps_apart(original: Any, serve: Callable[[Any], Any]) -> float | None:
    """The difference of a few steps; None where one of them has none, or the layer's own fails."""
    wide = next(original.parameters()).dtype == torch.float64
    dtype = torch.float64 if wide else torch.float32
    theirs, ours = twin(original, dtype, False), serve(twin(original, dtype, False)).eval()
    if not getattr(ours, "causal", False) or not all(
        hasattr(theirs, name) for name in ("step", "default_state")
    ):
        return None
    x = drawn(ours, _STEPS, dtype)
    try:
        want = list(_stepped(theirs, x.unbind(-1 if ours.channels_first else 1)))
    except Exception:  # many layers have steps that do not run, of some or all of their options
        return None
    got = list(_stepped(ours, x.unbind(-1 if ours.channels_first else 1)))
    if any(a.shape != b.shape for a, b in zip(want, got, strict=True)):
        return math.inf
    a, b = torch.stack(want), torch.stack(got)
    return _relative(float((a - b).abs().max()), float(a.abs().max()))


def _stepped(layer: Any, inputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
    if hasattr(layer, "setup_step"):
        layer.setup_step()
    state = layer.default_state(len(inputs[0]))
    for x in inputs:
        y, state = layer.step(x, state)
        yield y


def _modules_of(original: nn.Module) -> list[Any]:
    found = dict.fromkeys(inspect.getmodule(type(part)) for part in original.modules())
    return [module for module in found if module is not None]


def _incomplete_sum(original: Any) -> str | None:
    """The name of a sum without conjugates that the layer's code has."""
    z = torch.tensor([2j], dtype=torch.complex64)
    w = torch.tensor([[-1 + 1j]], dtype=torch.complex64)
    v = torch.ones_like(w)
    for module in _modules_of(original):
        for name in _INCOMPLETE:
            function = vars(module).get(name)
            if callable(function):
                try:
                    value = complex(function(v, z, w).flatten()[0])
                except Exception:  # a sum of other arguments is none of these
                    continue
                if abs(value - 1 / (z - w).flatten()[0].item()) < 1e-5:
                    return name
    return None


@contextmanager
def _complete_sum(original: Any) -> Iterator[None]:
    """The layer's code with the functions that ``install`` puts there."""
    with ExitStack() as undo:
        for module in _modules_of(original):
            if module.__name__ in sys.modules and not module.__name__.startswith("torch"):
                adopt(module, True, undo)
        yield
