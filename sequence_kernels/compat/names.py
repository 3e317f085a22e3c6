"""Parameter names of other libraries: state dicts of ``state-spaces/s4``, v3, v4 and its S4D, into ESPnet's and back.

Ours are ESPnet's. Where the others differ is in names, shapes, and the sign of the imaginary parts of v4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..ssm.parameters import REAL_TYPES

StateDict = dict[str, Tensor]

#: What v4 may store instead of a positive number.
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {name: kind.decay for name, kind in REAL_TYPES.items()}


def positive(stored: Tensor, transform: str) -> Tensor:
    """The numbers that stored ones stand for. Raises ValueError for a transform that is not known."""
    if transform not in _TRANSFORMS:
        raise ValueError(f"the transform {transform!r} is none of {', '.join(_TRANSFORMS)}")
    return _TRANSFORMS[transform](stored)


def positive_of_v4(stored: Tensor, transform: str) -> Tensor:
    """As ``positive``; v4 adds 1e-4 to what relu gives."""
    return positive(stored, transform) + (1e-4 if transform == "relu" else 0.0)


#: The name that each kind of layer has and no other, below its prefix.
_V4, _S4D, _ESPNET = "layer.kernel.inv_dt", "kernel.log_A_real", "kernel.kernel.log_dt"


def prefixes(state: Mapping[str, Tensor], mark: str) -> list[str]:
    """Where in the state dict a layer with a parameter of that name is."""
    return [name.removesuffix(mark) for name in state if name == mark or name.endswith("." + mark)]


def layers(state: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of the S4 layers in a state dict with ESPnet's names."""
    return prefixes(state, _ESPNET)


def part(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """The entries below the prefix, which is dropped from their names."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def from_s4(
    state: Mapping[str, Tensor],
    dt_transform: str = "exp",
    real_transform: str = "exp",
    imag_transform: str = "none",
    dt_fast: bool = False,
) -> StateDict:
    """A state dict of ``state-spaces/s4`` with ESPnet's names: layers of v3, v4, S4D, alone or in a model.

    The transforms, and ``dt_fast``, are those that a model of v4 was built with. Real modes become complex ones that do
    not turn; a step for each mode becomes part of the mode, by "exp". Raises ValueError for a layer that has no
    counterpart.
    """
    given = {"dt_transform": dt_transform, "real_transform": real_transform, "imag_transform": imag_transform}
    usual = {"dt_transform": "exp", "real_transform": "exp", "imag_transform": "none"}
    for argument, name in given.items():
        if name not in _TRANSFORMS:
            raise ValueError(f"{argument} must be one of {tuple(_TRANSFORMS)}, got {name!r}")
        if name != usual[argument] and not prefixes(state, _V4):
            raise ValueError(f"{argument}={name!r} is of layers of s4 v4, and the state dict has none")
    if dt_fast and not prefixes(state, _V4):
        raise ValueError("dt_fast=True is of layers of s4 v4, and the state dict has none")
    found = dict(state)
    for prefix in prefixes(state, _V4):
        layer = part(state, prefix)
        for name in layer:
            del found[prefix + name]
        if dt_fast:
            layer[_V4] = torch.sinh(layer[_V4])
        found |= {prefix + name: value for name, value in _from_v4(layer, **given).items()}
    for prefix in prefixes(state, _S4D):
        layer = part(state, prefix)
        for name in layer:
            del found[prefix + name]
        found |= {prefix + name: value for name, value in _from_s4d(layer).items()}
    return {name: _linear(name, value) for name, value in found.items()}


def _linear(name: str, value: Tensor) -> Tensor:
    """Weights of convolutions over one element are those of linear maps."""
    return (
        value.squeeze(-1) if name.endswith("weight") and value.dim() == 3 and value.shape[-1] == 1 else value
    )


def _from_v4(layer: StateDict, dt_transform: str, real_transform: str, imag_transform: str) -> StateDict:
    kernel = part(layer, "layer.kernel.")
    inv_dt, b, c = kernel.pop("inv_dt"), kernel.pop("B"), kernel.pop("C")
    if "input_gate.weight" in layer or "input_gate.0.weight" in layer:
        raise ValueError("a layer of v4 with gate multiplies before its linear map and cannot be loaded")
    real = kernel.pop("A_real")
    if "A_imag" in kernel:
        imag = -positive_of_v4(kernel.pop("A_imag"), imag_transform)
    else:  # is_real=True
        imag = torch.zeros_like(real)
        b, c = (torch.stack((t, torch.zeros_like(t)), -1) for t in (b, c))
    if _is_untied(inv_dt):
        if "P" in kernel:
            raise ValueError(
                "a layer with dt_tie=False, a step for each mode, and a low-rank part cannot be loaded"
            )
        dt = positive_of_v4(inv_dt, dt_transform)
        copies = len(dt) // len(real)
        real = torch.log(positive_of_v4(real, real_transform).repeat(copies, 1) * dt)
        imag, b = imag.repeat(copies, 1) * dt, b.repeat(1, copies, 1, 1) * dt.unsqueeze(-1)
        found = {"log_dt": torch.zeros_like(dt[:, 0]), "C": c}
    else:
        if real_transform == "relu":
            real = real.relu() + (1e-4 if "P" in kernel else 0)
        found = {"log_dt": _log(inv_dt.flatten(), dt_transform), "C": c}
    if "P" in kernel:
        names = {"P": kernel.pop("P"), "L": kernel.pop("l_kernel", torch.tensor(0))}
        found |= {"inv_w_real": real, "w_imag": imag, "B": b, **names}
    else:
        found |= {"inv_A_real": real, "A_imag": imag, "B": b.squeeze(0)}
    renamed = {f"kernel.kernel.{name}": value for name, value in (found | kernel).items()}
    outside = {name: value for name, value in layer.items() if not name.startswith("layer.")}
    return {"D": layer["layer.D"], **renamed, **outside}


def _is_untied(inv_dt: Tensor) -> bool:
    return inv_dt.dim() == 2 and inv_dt.shape[1] != 1


def untied(state: Mapping[str, Tensor]) -> bool:
    """Whether there is a layer of v4 with ``dt_tie=False``, a step for each mode."""
    return any(_is_untied(state[prefix + _V4]) for prefix in prefixes(state, _V4))


def _log(stored: Tensor, transform: str) -> Tensor:
    return stored if transform == "exp" else positive_of_v4(stored, transform).log()


def _from_s4d(layer: StateDict) -> StateDict:
    """S4D's A is -exp(log_A_real) + i A_imag, its B is 1."""
    c = layer["kernel.C"]
    kernel = {
        "C": c.unsqueeze(0),
        "B": torch.stack((torch.ones_like(c[..., 0]), torch.zeros_like(c[..., 0])), -1),
        "log_dt": layer["kernel.log_dt"],
        "inv_A_real": layer["kernel.log_A_real"],
        "A_imag": layer["kernel.A_imag"],
    }
    outside = {name: value for name, value in layer.items() if not name.startswith("kernel.")}
    renamed = {f"kernel.kernel.{name}": value for name, value in kernel.items()}
    return outside | {"D": layer["D"].unsqueeze(0), **renamed}


def to_v4(state: Mapping[str, Tensor]) -> StateDict:
    """The inverse of ``from_s4`` for v4 with its default transforms: every S4 layer in a state dict of ours."""
    found = dict(state)
    for prefix in layers(state):
        layer = part(state, prefix)
        for name in layer:
            del found[prefix + name]
        kernel = part(layer, "kernel.kernel.")
        kernel.pop("A", None)
        renamed = {
            "inv_dt": kernel.pop("log_dt").unsqueeze(-1),
            "A_real": kernel.pop("inv_w_real" if "P" in kernel else "inv_A_real"),
            "A_imag": -kernel.pop("w_imag" if "P" in kernel else "A_imag"),
            "B": kernel.pop("B").reshape(1, -1, *kernel["C"].shape[-2:]),
        }
        if "L" in kernel:
            renamed["l_kernel"] = kernel.pop("L")
        found |= {f"{prefix}layer.kernel.{name}": value for name, value in (kernel | renamed).items()}
        found[f"{prefix}layer.D"] = layer["D"]
        outside = {name for name in layer if name != "D" and not name.startswith("kernel.")}
        found |= {prefix + name: layer[name] for name in outside}
    return found
