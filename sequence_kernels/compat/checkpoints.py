"""Checkpoints of ESPnet and of ``state-spaces/s4`` as layers and models of ours, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import S4
from ..models import S4Decoder, SequenceModel
from ..ssm import DPLRSSM, DiagonalSSM
from . import names
from .names import StateDict

Source = Mapping[str, Any] | str | os.PathLike[str]


def load_espnet(
    source: Source, prefix: str = "", *, layers: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
) -> S4 | SequenceModel | S4Decoder:
    """An S4 layer, a backbone or an ``S4Decoder`` from ESPnet's state dict, or from the file that holds it.

    The shapes tell the sizes, ``mode``, ``rank``, ``n_ssm``, ``channels``, ``bidirectional``, gates and norms. What
    they cannot tell must be given where it is not the default. A readout that holds ``C (I - A^L)``, with a buffer
    ``L`` above 0, is made the readout itself, so the function is the same at every length.

    Args:
        source: a state dict, or a file with one: what ``torch.save`` wrote, as it is or as "state_dict" or "model", or
            a ``.safetensors`` file, which needs that package.
        prefix: where in it the layer, ``SequenceModel`` or ``S4Decoder`` is, such as ``"decoder."``.
        layers: for a backbone, further arguments of its layers by their names: ``{"s4": {"disc": "zoh"}}``.
        **options: further arguments of the layer (``activation``, ``disc``, ``real_type``, ``transposed``, ...), or of
            the backbone (``residual``, by default "R", ``dropout``, ...).

    Raises:
        ValueError: there is no S4 layer below the prefix, an argument is needed that was not given, or one is given,
            as in ``layers``, that nothing in the checkpoint takes.
        RuntimeError: the parameters do not fit (as ``load_state_dict``).
    """
    return _built(names.part(read(source), prefix), prefix, layers or {}, options)


def load_s4(
    source: Source,
    prefix: str = "",
    *,
    dt_transform: str = "exp",
    real_transform: str = "exp",
    imag_transform: str = "none",
    dt_fast: bool = False,
    layers: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> S4 | SequenceModel | S4Decoder:
    """An S4 layer or a backbone from a state dict of ``state-spaces/s4``: v3, v4 (``S4Block``), or ``S4D``.

    The transforms, and ``dt_fast``, are those that a model of v4 was built with. ``disc`` is "zoh" unless given for
    diagonal layers of v4 and S4D, whose default it is; everything else is as in ``load_espnet``. The function is the
    same where parameters are others: ``activation="glu"`` becomes a sigmoid as ``hyper_act``, real modes complex ones
    that do not turn, a step for each mode (``dt_tie=False``) part of that mode.
    """
    state = names.part(read(source), prefix)
    espnet = names.from_s4(state, dt_transform, real_transform, imag_transform, dt_fast)
    defaults: dict[str, Any] = {}
    if espnet.keys() != state.keys():  # v4 or S4D
        defaults = {"disc": "zoh"}
        if real_transform != "exp" and not names.untied(state):
            defaults["real_type"] = real_transform
        options = _without_glu(options)
        layers = {name: _without_glu(given) for name, given in (layers or {}).items()}
    return _built(espnet, prefix, layers or {}, options, defaults)


def _without_glu(options: Mapping[str, Any]) -> dict[str, Any]:
    """v4's "glu" inside a layer is one half of the channels times the sigmoid of the other."""
    glu = {"activation": None, "hyper_act": "sigmoid"} if options.get("activation") == "glu" else {}
    return {**options, **glu}


def export_espnet(module: nn.Module, length: int = 0) -> StateDict:
    """The state dict of a module of ours as ESPnet reads it, strictly.

    ``length``: store ``C (I - A^length)`` and the buffer ``L = length``, as a model that ran does; with 0 the readout
    itself, which ESPnet converts when it first runs.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    state = dict(module.state_dict())
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(part, DPLRSSM) and length:
            with torch.no_grad():
                c = part.system().truncated_readout(length).to(torch.complex128)
            state[f"{prefix}C"] = torch.view_as_real(c).to(part.C.dtype)
            state[f"{prefix}L"] = torch.tensor(length)
        if isinstance(part, DiagonalSSM) and f"{prefix}A" not in state:  # which nothing in ESPnet reads
            real = part.negative(part.inv_A_real).detach().to(part.A_imag.dtype)
            state[f"{prefix}A"] = torch.stack((real, part.A_imag.detach()), -1)
    return state


def export_s4(module: nn.Module, length: int = 0) -> StateDict:
    """The state dict of a module of ours with the names of s4 v4; ``length`` as in ``export_espnet``."""
    return names.to_v4(export_espnet(module, length))


def read(source: Source) -> Mapping[str, Tensor]:
    """The state dict that a source is, or that a file holds; one inside "state_dict" or "model" too."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fspath(source))
        source = (
            _safetensors(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    if not isinstance(source, Mapping):
        raise TypeError(f"source must be a state dict or a file with one, got {type(source).__name__}")
    for inside in ("state_dict", "model"):
        if isinstance(source.get(inside), Mapping):
            return source[inside]
    return source


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError(f"{path.name} needs `pip install safetensors`") from error
    return load_file(path)


def _built(
    state: StateDict,
    prefix: str,
    layers: Mapping[str, Mapping[str, Any]],
    options: dict[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> S4 | SequenceModel | S4Decoder:
    found = names.layers(state)
    if not found:
        raise ValueError(f"there is no S4 layer below the prefix {prefix!r}")
    defaults = defaults or {}
    module: S4 | SequenceModel | S4Decoder
    if found == [""]:
        _refuse_unused(layers, ())
        module = S4(**_s4_arguments(state, options, defaults))
    elif any(name.startswith("layers.0.layer.") for name in state):
        module = SequenceModel(**_backbone_arguments(state, layers, defaults) | options)
    elif "embed.weight" in state and any(name.startswith("decoder.layers.0.layer.") for name in state):
        arguments = _backbone_arguments(names.part(state, "decoder."), layers, defaults)
        sizes = len(state["embed.weight"]), arguments.pop("d_model")
        module = S4Decoder(*sizes, **{"n_layers": 1, "dropout": 0.0} | arguments | options)
    else:
        inside = ", ".join(sorted({repr(prefix + _whole(name)) for name in found}))
        raise ValueError(
            f"prefix {prefix!r} holds no layer, SequenceModel or S4Decoder; there are some below {inside}"
        )
    module = module.to(next(value.dtype for value in state.values() if value.is_floating_point()))
    module.load_state_dict(state, strict=True)
    return module


def _whole(layer: str) -> str:
    """The prefix of the backbone that a layer is in, or of the layer where it is in none."""
    backbone = re.match(r"(|.*?\.)layers\.\d+\.layer\.$", layer)
    return layer if backbone is None else backbone[1]


def _s4_arguments(
    state: StateDict, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of ``S4`` for a layer's state dict with ESPnet's names."""
    for name in ("D", "kernel.kernel.C"):
        if name not in state:
            raise ValueError(f"the layer has no parameter {name!r}")
    c = state["kernel.kernel.C"]
    nplr = "kernel.kernel.P" in state
    poles = f"kernel.kernel.inv_{'w' if nplr else 'A'}_real"
    if poles not in state or state["D"].dim() != 2 or c.dim() != 4:
        known = ", ".join(sorted(name for name in state if name.startswith("kernel.")))
        raise ValueError(
            f"the layer is of no known version of S4: it has {known}, without {poles!r} or with other shapes; "
            "compat.accelerate serves some such layers in their own model"
        )
    readouts, heads = state["D"].shape
    linear = state.get("output_linear.0.weight", state.get("output_linear.weight"))
    if any(name.startswith("output_linear.") and name.endswith(("weight_g", "original0")) for name in state):
        raise ValueError("a layer with weight_norm=True cannot be loaded: take the norm off its model first")
    bottleneck = state.get("input_linear.0.weight", state.get("input_linear.weight"))
    gate = state.get("input_gate.0.weight", state.get("input_gate.weight"))
    d_model = next((w.shape[1] for w in (bottleneck, gate) if w is not None), heads)
    found: dict[str, Any] = {
        "d_model": d_model,
        "d_state": 2 * c.shape[-2],
        "channels": readouts // (2 if "hyper_act" in given else 1)
        if linear is None
        else linear.shape[1] // heads,
        "bidirectional": c.shape[0] == 2 * readouts,
        "mode": "nplr" if nplr else "diag",
        "n_ssm": state[poles].shape[0],
        "gate": None if gate is None else gate.shape[0] // d_model,
        "bottleneck": None if bottleneck is None else d_model // heads,
    }
    if linear is None:  # final_act=None
        found |= {"output_linear": False, "postact": None}
    elif "output_linear.weight" in state:
        found["postact"] = None
    else:
        found["postact"] = "glu" if linear.shape[0] == 2 * d_model * (found["gate"] or 1) else "id"
    if readouts == 2 * found["channels"] and "hyper_act" not in given:
        raise ValueError(
            "the layer has a hyper_act, whose name its parameters do not tell: pass hyper_act=..., or "
            "activation='glu' if it is one of s4 v4 with that"
        )
    if nplr:
        found["rank"] = state["kernel.kernel.P"].shape[0]
        usable = {name: value for name, value in (defaults or {}).items() if name != "disc"}
    else:
        found["measure"] = "diag-lin"
        usable = dict(defaults or {})
    return found | usable | dict(given)


def _backbone_arguments(
    state: StateDict, layers: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of ``SequenceModel`` for its state dict with ESPnet's names, all blocks written out."""
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    configs = [_layer_config(names.part(state, f"layers.{i}.layer."), layers, defaults) for i in range(count)]
    _refuse_unused(layers, {config["_name_"] for config in configs})
    first = configs[0]
    arguments: dict[str, Any] = {
        "d_model": first.pop("d_model"),
        "layer": [{key: value for key, value in config.items() if key != "d_model"} for config in configs],
        "prenorm": any(name.startswith("norm.") for name in state),
        "transposed": any(
            name.startswith(("layers.0.norm.norm.m", "layers.0.norm.norm.ln")) for name in state
        ),
        "residual": "R",
    }
    if any(name.startswith("layers.0.norm.") for name in state):
        arguments["norm"] = "batch" if "layers.0.norm.norm.running_mean" in state else "layer"
    return arguments


def _refuse_unused(layers: Mapping[str, Any], present: Collection[str]) -> None:
    for name in layers:
        if name not in present:
            known = (
                f"has {', '.join(sorted(present))}"
                if present
                else "is one layer, whose options are given as such"
            )
            raise ValueError(f"layers has options for {name!r}, but the checkpoint {known}")


def _layer_config(
    state: StateDict, layers: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    if names.layers(state) == [""]:
        return {"_name_": "s4", **_s4_arguments(state, layers.get("s4", {}), defaults)}
    if "ff.2.weight" in state:
        outer, inner = state["ff.2.weight"].shape
        width = state["ff.0.0.weight"].shape
        found: dict[str, Any] = {
            "_name_": "ff",
            "d_model": width[1],
            "expand": Fraction(inner, width[1]),  # exact
            "d_output": outer,
        }
        if width[0] == 2 * inner:
            found["activation"] = "glu"
        return found | dict(layers.get("ff", {}))
    if "linear_q.weight" in state:
        if "n_head" not in layers.get("mha", {}):
            raise ValueError(
                "the checkpoint has attention, whose number of heads its parameters do not tell: "
                'pass layers={"mha": {"n_head": ...}}'
            )
        return {"_name_": "mha", "d_model": state["linear_q.weight"].shape[0], **layers.get("mha", {})}
    raise ValueError(f"a layer with the parameters {sorted(state)} is not known")
