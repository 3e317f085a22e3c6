"""The names that a ``layer`` argument may use, and how such an argument becomes a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import layers
from ..module import SequenceIdentity, SequenceModule

_SHORT = {"CausalConv": "conv", "FeedForward": "ff", "MultiHeadedAttention": "mha"}

#: Layers by name, that of the class in lower case or a short one. Add to it to use a layer of your own by name.
LAYERS: dict[str, Callable[..., SequenceModule]] = {
    **{_SHORT.get(name, name.lower()): getattr(layers, name) for name in layers.__all__},
    "id": SequenceIdentity,
}

#: A name in ``LAYERS``; ``{"_name_": name, **arguments}``; a class or function that is called as
#: ``layer(d_model, transposed=...)`` and returns a SequenceModule; or a SequenceModule, taken as it is.
LayerConfig = str | Mapping[str, Any] | Callable[..., SequenceModule] | SequenceModule


def layer_config(layer: LayerConfig, **defaults: Any) -> dict[str, Any]:
    """A new ``{"_name_": ..., **arguments}`` for ``layer``; ``defaults`` fill what is missing or None.

    A class or function takes no defaults: whoever passes it binds its arguments. Raises TypeError for what is
    not a ``LayerConfig``, and ValueError for a name that ``LAYERS`` does not have.
    """
    if isinstance(layer, str):
        layer = {"_name_": layer}
    elif callable(layer):  # a module too
        return {"_name_": layer}
    if not isinstance(layer, Mapping) or "_name_" not in layer:
        raise TypeError(
            'layer must be a name, a dict with a "_name_", a SequenceModule, or a class or function that makes one; '
            f"got {type(layer).__name__}: {layer!r}"
        )
    name = layer["_name_"]
    if callable(name):
        return dict(layer)
    if name not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}; got {name!r}")
    missing = {key: value for key, value in defaults.items() if layer.get(key) is None}
    return {**layer, **missing}


def make_layer(layer: LayerConfig, d_model: int, transposed: bool) -> SequenceModule:
    """Build the layer for width ``d_model`` and the given layout. Raises as ``layer_config`` does."""
    arguments = {**layer_config(layer), "transposed": transposed}
    name = arguments.pop("_name_")
    if isinstance(name, SequenceModule):
        if name.d_model != d_model or getattr(name, "transposed", transposed) != transposed:
            raise ValueError(
                f"layer must have d_model={d_model} and transposed={transposed}, got d_model={name.d_model} and "
                f"transposed={getattr(name, 'transposed', transposed)}"
            )
        return name
    make = name if callable(name) else LAYERS[name]
    return make(d_model, **arguments)
