"""State-space layers of other libraries, replaced in a live model by ours once they have proven to be the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..module import SequenceModule
from . import hugging_face, scans, served, trial


@dataclass
class Acceleration:
    """What ``accelerate`` did to a model.

    Attributes:
        replaced: the class of each layer that is ours now, by its name in the model.
        skipped: why each other one was left alone.
        remarks: of replaced layers that disagreed with themselves, in what; ours do not.
        not_optimized: names of parameters of replaced layers that want a gradient and that the optimizer which was
            given does not have.
    """

    model: nn.Module
    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    not_optimized: list[str] = field(default_factory=list)
    _originals: dict[str, nn.Module] = field(default_factory=dict)

    def revert(self) -> None:
        """Put the replaced layers back, with the values that their parameters have by now."""
        for name, original in self._originals.items():
            original.training = self.model.get_submodule(name).training
            _set(self.model, name, original)
        self._originals.clear()
        self.replaced.clear()
        self.remarks.clear()

    def __str__(self) -> str:
        lines = []
        if self.not_optimized:
            lines.append(f"the optimizer does not have {', '.join(self.not_optimized)}")
        for name, cls in self.replaced.items():
            remark = self.remarks.get(name)
            lines.append(f"replaced {name} ({cls})" + (f": {remark}" if remark else ""))
        lines += [f"left {name}: {reason}" for name, reason in self.skipped.items()]
        if not self.replaced and not self.skipped:
            lines.append("found no S4 layer and no Mamba mixer" + _nearest(self.model))
        return "\n".join(lines)


def accelerate(
    model: nn.Module, *, check: bool = True, optimizer: torch.optim.Optimizer | None = None
) -> Acceleration:
    """Replace the S4 layers of ESPnet and ``state-spaces/s4``, of any version, S5 of s5-pytorch, LRU of LRU-pytorch and
    Hugging Face's Mamba mixers by ours: the same function.

    Layers are recognised by what they are made of, so that copies of those files under other names are found too, and
    replaced once they have been proven: a copy of the layer and of ours are run on drawn inputs of two lengths, in
    evaluation, and a layer that computes something else stays, with the difference in ``skipped``. Of ``S4Block`` the
    layer inside it is replaced (``FFTConv``).

    What is replaced keeps its parts, its parameters and buffers, their names, values, ``requires_grad`` and ``_optim``:
    they are the same objects, in the same form. An optimizer goes on with them, checkpoints are the same, and
    gradients are those of the same numbers. A step of ours needs no ``setup_step``, and its state is complex and of
    half the size; one state of a batch of 1 serves all rows.

    ESPnet's nplr layers then compute the function of their own ``step``. Without its CUDA extension its ``forward``
    computes another one, in which one half of each conjugate pair is missing.

    Args:
        model: changed in place, or not at all if there is an error.
        check: whether layers are proven. Without it they are trusted to be what they look like.
        optimizer: looked through for the parameters of replaced layers, none of which has to be moved;
            ``not_optimized`` names those that want a gradient and are not in it.

    Returns:
        What was replaced, and what was not and why; its ``revert()`` undoes it.

    Raises ValueError when ``model`` is itself such a layer: nothing can be put in its place.
    """
    if _kind(model) is not None:
        raise ValueError(
            "model is itself such a layer, and cannot be replaced in place: see load_espnet, load_s4, load_mamba"
        )
    done = Acceleration(model)
    made: dict[nn.Module, nn.Module] = {}  # a layer in several places stays one
    places: list[tuple[str, nn.Module]] = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        kind = _kind(module)
        if kind is None:
            continue
        try:
            if module not in made:
                remark = kind.proven(module) if check else None
                made[module] = kind.served(module).train(module.training)
                if remark is not None:
                    done.remarks[name] = remark
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            done.skipped[name] = str(error)
            continue
        places.append((name, module))
    _swap(model, {name: made[module] for name, module in places})
    done.replaced = {name: type(module).__name__ for name, module in places}
    done._originals = dict(places)
    if optimizer is not None:
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        done.not_optimized = [
            f"{name}.{own}"
            for name, module in places
            for own, parameter in module.named_parameters()
            if parameter.requires_grad and id(parameter) not in known
        ]
    return done


def _swap(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Put the layers in their places, or leave all as it was."""
    before: dict[str, nn.Module] = {}
    try:
        for name, layer in layers.items():
            before[name] = model.get_submodule(name)
            _set(model, name, layer)
    except BaseException:
        for name, layer in before.items():
            _set(model, name, layer)
        raise


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


class _Kind(NamedTuple):
    """A kind of layer: what it is recognised by, what serves it, and what proves that this is the same."""

    parts: tuple[str, ...]
    served: Callable[[Any], nn.Module]
    proven: Callable[[Any], str | None]
    fits: Callable[[Any], bool] = lambda module: True


def _kind(module: Any) -> _Kind | None:
    if isinstance(module, _OURS):
        return None
    return next((kind for kind in _KINDS if not _lacking(module, kind) and kind.fits(module)), None)


def _lacking(module: Any, kind: _Kind) -> list[str]:
    return [path for path in kind.parts if not _has(module, path)]


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


def _nearest(model: nn.Module) -> str:
    """Of the modules that have some of what a kind is recognised by, those that lack least."""
    found = [
        (len(lacking), name, type(module).__name__, lacking)
        for name, module in model.named_modules()
        for kind in _KINDS
        if not isinstance(module, _OURS)
        if 0 < len(lacking := _lacking(module, kind)) < len(kind.parts)
    ]
    lines = [
        f"\nnearest {name or 'model'} ({cls}): it lacks {', '.join(lacking)}"
        for _, name, cls, lacking in sorted(found)[:3]
    ]
    return "".join(lines)


def _ours(parts: tuple[str, ...], serve: Any) -> _Kind:
    return _Kind(parts, serve, lambda module: trial.compare(module, serve), serve.fits)


_OURS = (SequenceModule, hugging_face.Mixer, *(serve for _, serve in scans.KINDS))

_KINDS = (
    *(_ours(parts, serve) for parts, serve in (*served.KINDS, *scans.KINDS)),
    _Kind(hugging_face.PARTS, hugging_face.served, hugging_face.proven),
)
