"""Checkpoints of mamba_ssm and of Hugging Face's Mamba and Mamba2 as layers and models of ours, and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..layers import Mamba, Mamba2
from ..layers.mamba2 import GatedRMSNorm
from ..models import MambaLM
from . import names
from .checkpoints import Source, read
from .pretrained import load_config_hf, weights_file

Module = TypeVar("Module", bound=nn.Module)

#: What a configuration may say of layers of the first Mamba; the rest of it is of Mamba-2 or the model.
_OF_MAMBA = ("inner_norm", "inner_norm_eps")


def load_mamba(
    source: Source, prefix: str = "", *, dtype: torch.dtype = torch.float32, **options: Any
) -> MambaLM | Mamba | Mamba2:
    """A Mamba layer, a Mamba-2 layer or a ``MambaLM`` from a checkpoint of mamba_ssm or of Hugging Face.

    The shapes tell the sizes. Only a ``config.json`` beside the file, or ``options``, can tell the groups of Mamba-2
    (``ngroups``, else 1; ``norm_groups``), ``dt_limit``, ``norm_before_gate``, the norms' ``eps``, and Falcon Mamba's
    ``inner_norm="plain"``. Of Falcon Mamba the whole model is loaded, of Jamba, Bamba and Granite's hybrids a mixer.

    Args:
        source: a state dict, a file that holds one, or a directory with one and a ``config.json``, as both libraries
            save. A ``.safetensors`` file needs that package.
        prefix: where in it the model or the layer is, such as ``"backbone.layers.0.mixer."``.
        dtype: of the parameters, whatever the checkpoint's is, as mamba_ssm's ``from_pretrained`` has it.
        **options: arguments of the layers, before those of the configuration.

    Raises:
        TypeError: an option that the layer does not take, such as ``ngroups`` of the first Mamba.
        ValueError: there is no Mamba layer below the prefix.
        RuntimeError: the parameters do not fit, as of a model that has attention or an MLP too.
    """
    stored, config = _weights(source)
    weights = names.part(stored, prefix)
    configured = _configured(config)
    eps = options.pop("eps", configured.pop("eps", 1e-5))
    if "in_proj.weight" in weights:
        kind, sizes = _sizes(weights, configured, options)
        layer: Mamba | Mamba2 = (Mamba if kind == "mamba" else Mamba2)(**sizes)
        return _filled(layer, weights, eps, dtype)
    weights = {name.replace("backbone.embeddings.", "backbone.embedding."): t for name, t in weights.items()}
    embedding, first = weights.get("backbone.embedding.weight"), "backbone.layers.0.mixer."
    mixer = {name.removeprefix(first): t for name, t in weights.items() if name.startswith(first)}
    if embedding is None or "in_proj.weight" not in mixer:
        found = ", ".join(sorted(weights)[:5]) or "nothing"
        raise ValueError(f"source has no Mamba layer or model below prefix {prefix!r}, but {found} ...")
    kind, sizes = _sizes(mixer, configured, options)
    head = weights.get("lm_head.weight", embedding)
    tied = head is embedding or torch.equal(head, embedding)
    if tied:
        weights.pop("lm_head.weight", None)
    blocks = {name.split(".")[2] for name in weights if name.startswith("backbone.layers.")}
    model = MambaLM(
        len(embedding),
        n_layers=len(blocks),
        layer=kind,
        tie_embeddings=tied,
        pad_vocab_size_multiple=1,
        eps=eps,
        **sizes,
    )
    return _filled(model, weights, eps, dtype)


def _filled(module: Module, weights: Mapping[str, Tensor], eps: float, dtype: torch.dtype) -> Module:
    """The module with these parameters, and with the norms' eps inside its layers too."""
    for part in module.modules():
        if isinstance(part, GatedRMSNorm):
            part.eps = eps
    module.to(dtype).load_state_dict(weights)
    return module


def export_mamba(model: MambaLM, *, hugging_face: bool = False) -> dict[str, Tensor]:
    """The state dict of a ``MambaLM`` as mamba_ssm's model, or Hugging Face's, loads it."""
    state = {name: t.detach() for name, t in model.state_dict().items()}
    state.setdefault("lm_head.weight", state["backbone.embedding.weight"])
    if hugging_face:
        state["backbone.embeddings.weight"] = state.pop("backbone.embedding.weight")
    return state


def _weights(source: Source) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    if isinstance(source, Mapping):
        return read(source), {}
    path, config = Path(os.fspath(source)), {}
    if path.is_dir():
        if (path / "config.json").exists():
            config = load_config_hf(path)
        path = weights_file(path)
    return read(path), config


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of layers that a configuration of either library names and shapes do not tell."""
    layer, family = config.get("ssm_cfg") or {}, config.get("model_type")
    whole = family in ("bamba", "granitemoehybrid")  # whose norm is of all channels together
    found = {
        "ngroups": layer.get("ngroups", config.get("mamba_n_groups" if whole else "n_groups")),
        "norm_groups": 1 if whole else None,
        "inner_norm": "plain" if family == "falcon_mamba" else None,
        "inner_norm_eps": config.get("rms_norm_eps" if family == "jamba" else "mixer_rms_eps"),
        "dt_limit": layer.get("dt_limit", config.get("time_step_limit")),
        "norm_before_gate": layer.get("norm_before_gate"),
        "eps": config.get("rms_norm_eps" if whole else "layer_norm_epsilon"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _sizes(
    weights: Mapping[str, Tensor], configured: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The kind of a layer, and its arguments: what its parameters' shapes tell, the configuration and the options."""
    width, inner = weights["out_proj.weight"].shape
    sizes: dict[str, Any] = {
        "d_model": width,
        "d_conv": weights["conv1d.weight"].shape[-1],
        "expand": inner / width,
        "bias": "in_proj.bias" in weights,
        "conv_bias": "conv1d.bias" in weights,
    }
    if "x_proj.weight" in weights:
        sizes |= {name: value for name, value in configured.items() if name in _OF_MAMBA}
        sizes |= {"d_state": weights["A_log"].shape[1], "dt_rank": weights["dt_proj.weight"].shape[1]}
        if "dt_layernorm.weight" in weights:
            sizes["inner_norm"] = "learned"
        return "mamba", {**sizes, **options}
    options = {**configured, **options}
    heads = len(weights["dt_bias"])
    # in_proj gives two of what lies beside the recurrence, z, the convolution's channels and dt.
    mixed = len(weights["conv1d.weight"])
    channels = 2 * inner - (len(weights["in_proj.weight"]) - mixed - heads)
    groups = options.get("ngroups", 1)
    sizes |= {
        "d_ssm": channels,
        "headdim": channels // heads,
        "ngroups": groups,
        "d_state": (mixed - channels) // (2 * groups),
        "rmsnorm": "norm.weight" in weights,
        "D_has_hdim": len(weights["D"]) != heads,
    }
    return "mamba2", {**sizes, **options}
